# SPDX-License-Identifier: Apache-2.0
"""What every report needs: files, units, the identity of the model, and the machine."""
