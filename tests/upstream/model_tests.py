# SPDX-License-Identifier: Apache-2.0
"""The classes of this package under the tests that transformers carries for its own; `test_upstream.py` runs them."""

import unittest

import torch
from conftest import TINY, tiny_config
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES
from transformers.testing_utils import torch_device
from transformers_tests import test_expert_parallel_mixin, test_tensor_parallel_mixin
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin
from transformers_tests.test_training_mixin import TrainingTesterMixin

from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM, LongCatLiteModel

# Which class gets labels: the tests look names up where transformers keeps those of its own classes.
MODEL_MAPPING_NAMES[LongCatLiteConfig.model_type] = LongCatLiteModel.__name__
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[LongCatLiteConfig.model_type] = LongCatLiteForCausalLM.__name__
# Which models run in several processes.
test_tensor_parallel_mixin.TP_DISTRIBUTED_TEST_MODEL_TYPES.add(LongCatLiteConfig.model_type)
test_expert_parallel_mixin.EP_DISTRIBUTED_TEST_MODEL_TYPES.add(LongCatLiteConfig.model_type)


class ModelTester:
    """What the mixins want to know of a model."""

    batch_size = 3
    seq_length = 7
    is_training = True
    num_hidden_layers = 4  # attentions that are recorded: two to a layer
    expected_num_hidden_layers = 3  # hidden states: one for each layer, and the embedding
    base_model_class = LongCatLiteModel
    causal_lm_class = LongCatLiteForCausalLM

    def get_config(self) -> LongCatLiteConfig:
        return tiny_config()

    def __getattr__(self, name: str):
        return getattr(self.get_config(), name)

    def prepare_config_and_inputs_for_common(self) -> tuple[LongCatLiteConfig, dict[str, torch.Tensor]]:
        config = self.get_config()
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(4, config.vocab_size, (self.batch_size, self.seq_length), generator=generator)
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        return config, {name: tensor.to(torch_device) for name, tensor in inputs.items()}


class TestLongCatLite(ModelTesterMixin, TrainingTesterMixin, unittest.TestCase):
    all_model_classes = (LongCatLiteModel, LongCatLiteForCausalLM)
    test_all_params_have_gradient = False  # experts that no token chose
    model_tester = ModelTester()


class TestLongCatLiteInParts(
    test_expert_parallel_mixin.ExpertParallelTesterMixin,
    test_tensor_parallel_mixin.TensorParallelTesterMixin,
    unittest.TestCase,
):
    all_model_classes = (LongCatLiteModel, LongCatLiteForCausalLM)
    model_tester = ModelTester()


class TestLongCatLiteConfig(unittest.TestCase):
    def test_config(self):
        ConfigTester(self, config_class=LongCatLiteConfig, **TINY).run_common_tests()
