# SPDX-License-Identifier: Apache-2.0
"""What every report needs: files, figures, the identity of a model and of the machine."""
