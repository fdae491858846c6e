"""`patch_causal_lm`: models of the shape of Hugging Face's, and tiny ones of theirs where it is installed."""

import copy
import inspect
import types

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from softmaxloss.dropins.causal_lm import patch_causal_lm  # noqa: E402

CLASSES, FEATURES = 23, 8


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(CLASSES, (2, 7), generator=generator)
    labels = tokens.clone()
    labels[0, :3] = -100
    return tokens, labels


class Output(dict):
    """As transformers' ModelOutput: a dictionary with attributes, made of keywords."""

    def __getattr__(self, name):
        return self.get(name)

    def to_tuple(self):
        return tuple(self.values())


class Model(nn.Module):
    """As transformers' models: a body, a head, and a loss function that may be assigned to."""

    def __init__(self, between=lambda logits: logits, bias=False, by_loss_function=True):
        super().__init__()
        self.config = types.SimpleNamespace(final_logit_softcapping=None, return_dict=True)
        self.embedding = nn.Embedding(CLASSES, FEATURES)
        self.lm_head = nn.Linear(FEATURES, CLASSES, bias=bias)
        self.between, self.by_loss_function = between, by_loss_function
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))

    def get_output_embeddings(self):
        return self.lm_head

    @property
    def loss_function(self):
        return getattr(self, "_loss_function", loss_of_logits)

    def forward(self, input_ids, labels=None, return_dict=None, **kwargs):
        logits = self.between(self.lm_head(self.embedding(input_ids)))
        softcap = self.config.final_logit_softcapping
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        loss = None
        if labels is not None:
            find = self.loss_function if self.by_loss_function else loss_of_logits
            loss = find(logits, labels, self.lm_head.out_features, **kwargs)
        output = Output(loss=loss, logits=logits)
        return output.to_tuple() if return_dict is False else output


def loss_of_logits(logits, labels, vocab_size, num_items_in_batch=None, shift_labels=None, **kwargs):
    """Return what transformers' ForCausalLMLoss does."""
    if shift_labels is None:
        shift_labels = nn.functional.pad(labels, (0, 1), value=-100)[..., 1:]
    total = nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        shift_labels.reshape(-1).clamp(max=logits.shape[-1] - 1),
        reduction="mean" if num_items_in_batch is None else "sum",
    )
    return total if num_items_in_batch is None else total / num_items_in_batch


def step(model, tokens, labels, **more):
    """Return the output of a training step, and all gradients."""
    model.zero_grad()
    output = model(input_ids=tokens, labels=labels, **more)
    output.loss.backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(model, tokens, labels, **more):
    expected, gradients = step(model, tokens, labels, **more)
    assert patch_causal_lm(model) is model
    found, ours = step(model, tokens, labels, **more)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-6)
    assert ours.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert found.logits is None
    assert "logits" not in found
    # Nothing of the patch is left in the parts.
    assert "forward" not in vars(model.get_output_embeddings())
    assert "_loss_function" not in vars(model)


FACTORS = {
    "none": lambda z: z,
    "product": lambda z: z * 0.25,
    "quotient": lambda z: z / 3.0,
    "view": lambda z: z.view(z.shape) * 2,
}


@pytest.mark.parametrize("factor", FACTORS.values(), ids=FACTORS)
def test_a_factor_between_head_and_loss(tokens, factor):
    assert_same_step(Model(factor), *tokens)


def test_a_bias(tokens):
    assert_same_step(Model(bias=True), *tokens)


def test_a_softcap(tokens):
    model = Model()
    model.config.final_logit_softcapping = 0.5
    assert_same_step(model, *tokens)
    assert model.config.final_logit_softcapping == 0.5


def test_tied_weights(tokens):
    model = Model()
    model.lm_head.weight = model.embedding.weight
    assert_same_step(model, *tokens)


def test_several_batches_in_one_step(tokens):
    assert_same_step(Model(), *tokens, num_items_in_batch=torch.tensor(23))


def test_labels_that_are_shifted_already(tokens):
    ids, labels = tokens
    assert_same_step(Model(), ids, labels, shift_labels=labels.roll(-1, 1))


def test_options(tokens):
    model = Model()
    ids, labels = tokens
    logits = model(ids).logits
    shifted = nn.functional.pad(labels, (0, 1), value=-100)[..., 1:]
    flat = logits.reshape(-1, CLASSES)[shifted.reshape(-1) != -100]
    expected = nn.functional.cross_entropy(flat, shifted[shifted != -100], label_smoothing=0.1)
    expected = expected + 0.01 * flat.logsumexp(-1).square().mean()
    patch_causal_lm(model, label_smoothing=0.1, z_loss=0.01, max_block_bytes=256)
    torch.testing.assert_close(model(ids, labels).loss, expected)


def test_evaluation_and_generation_have_logits(tokens):
    ids, labels = tokens
    model = Model()
    expected = model(ids, labels)
    patch_causal_lm(model)
    assert torch.equal(model(ids).logits, expected.logits)
    model.eval()
    found = model(ids, labels)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.loss, expected.loss)


def test_a_tuple_where_one_is_wanted(tokens):
    model = patch_causal_lm(Model())
    (loss,) = model(*tokens, return_dict=False)
    assert loss.shape == ()
    model.config.return_dict = False
    assert len(model(*tokens)) == 1


def test_the_signature_stays():
    model = Model()
    before = inspect.signature(model.forward)
    assert inspect.signature(patch_causal_lm(model).forward) == before


def test_a_copy_is_its_own_model(tokens):
    model = patch_causal_lm(Model())
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.zero_()
    output, gradients = step(other, *tokens)
    torch.testing.assert_close(output.loss, torch.tensor(float(CLASSES)).log())
    assert gradients["lm_head.weight"].any()
    assert model.lm_head.weight.grad is None


def test_patched_again_it_is_patched_anew(tokens):
    model = patch_causal_lm(Model(), z_loss=1.0)
    once = patch_causal_lm(Model())(*tokens).loss
    assert torch.equal(patch_causal_lm(model)(*tokens).loss, once)


REFUSED = {
    "softcap": lambda z: 30.0 * torch.tanh(z / 30.0),
    "a mask": lambda z: z.masked_fill(torch.arange(z.shape[-1]) == 3, -1e9),
    "in place": lambda z: z.mul_(torch.arange(z.shape[-1])),
    "by class": lambda z: z * torch.linspace(1.0, 1.5, z.shape[-1]),
    "fewer classes": lambda z: z[..., :5],
    "a sum": lambda z: z + 1e-3,
    "detached": lambda z: z.detach() * 1.0,
}


@pytest.mark.parametrize("between", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_followed_is_refused(tokens, between):
    model = patch_causal_lm(Model(between))
    with pytest.raises(RuntimeError, match="train it without the patch"):
        model(*tokens)
    assert "forward" not in vars(model.lm_head)


def test_a_factor_and_a_bias_are_refused(tokens):
    with pytest.raises(RuntimeError, match="train it without the patch"):
        patch_causal_lm(Model(lambda z: z * 0.5, bias=True))(*tokens)


def test_a_loss_of_its_own_is_refused(tokens):
    with pytest.raises(RuntimeError, match="does not compute its loss by its loss_function"):
        patch_causal_lm(Model(by_loss_function=False))(*tokens)


@pytest.mark.parametrize("model", [nn.Linear(2, 3), nn.Module(), "a model"])
def test_other_models_are_refused(model):
    with pytest.raises(TypeError, match="causal language model"):
        patch_causal_lm(model)


SIZES = {
    "vocab_size": CLASSES,
    "hidden_size": FEATURES,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DROPOUT = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
GPT2 = {"vocab_size": CLASSES, "n_embd": FEATURES, "n_layer": 1, "n_head": 2, "n_positions": 16, **DROPOUT}
ARCHITECTURES = {
    "Llama": SIZES,
    "GPT2": GPT2 | {"bos_token_id": 1, "eos_token_id": 2},
    "Phi": SIZES,  # a bias
    "Gemma2": SIZES | {"head_dim": 4, "final_logit_softcapping": 0.5},
    "Cohere": SIZES | {"logit_scale": 0.25},
    "Granite": SIZES | {"logits_scaling": 4.0},
    "Mixtral": SIZES | {"num_local_experts": 2, "output_router_logits": True},  # a loss of its experts besides
}


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def tiny(transformers, architecture):
    config = getattr(transformers, f"{architecture}Config")(**ARCHITECTURES[architecture])
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).train()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers(transformers, tokens, architecture):
    assert_same_step(tiny(transformers, architecture), *tokens)


def test_transformers_generate(transformers, tokens):
    model = tiny(transformers, "Llama").eval()
    call = {"max_new_tokens": 3, "do_sample": False}
    expected = model.generate(tokens[0], **call)
    assert torch.equal(patch_causal_lm(model).generate(tokens[0], **call), expected)


def test_transformers_without_a_loss_function(transformers, tokens):
    config = transformers.BartConfig(
        vocab_size=CLASSES, d_model=FEATURES, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=8,
        is_decoder=True, max_position_embeddings=16,
    )  # fmt: skip
    model = patch_causal_lm(transformers.BartForCausalLM(config).train())
    with pytest.raises(RuntimeError):
        model(input_ids=tokens[0], labels=tokens[1])
