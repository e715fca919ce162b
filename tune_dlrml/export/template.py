"""The text of `reproduce.py`, with placeholders for what differs between trials."""

from string import Template

SCRIPT = Template('''\
"""$title

Needs $requirements,
and neither Ray nor tune_dlrml:

    python reproduce.py [FOLDER]

Prints one JSON line per report, with the loss of the steps since the last one. FOLDER keeps the trained model.
"""

$standard_imports

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

$imports

HERE = Path(__file__).parent
$constants
DTYPE = torch.$dtype
ARGUMENTS = $arguments
"""Of TRL's DPOConfig; all others are at their defaults."""
SKIP_NONFINITE = $skip_nonfinite
"""Whether a step with a non-finite gradient is left out."""


# The loss. B = preference pairs in the batch; log-ratios and margins in nats, lengths in tokens of the completion.


$definitions


MIX = $mix
MIX_LEARNING_RATE = $mix_learning_rate
${sft_constants}${ld_constants}

def pair_loss($of_the_pairs):
    return $call


class LossTrainer(DPOTrainer):
    """TRL's trainer with the loss above in place of its own."""

    def _compute_loss(self, model, inputs, return_outputs):
        outputs = forward(model, inputs)
        chosen_logps_B, rejected_logps_B = log_probs(outputs, inputs)
        $compared
        chosen_logratio_B = chosen_logps_B - reference_chosen_logps_B
        rejected_logratio_B = rejected_logps_B - reference_rejected_logps_B
        chosen_length_B, rejected_length_B = inputs["completion_mask"].sum(dim=1).chunk(2)
        margin_B = chosen_logratio_B - rejected_logratio_B
        reference_margin_B = reference_chosen_logps_B - reference_rejected_logps_B
        $margin
        loss_B = pair_loss($of_the_pairs)
        loss = $mean
        return loss${sft_term}
${reference_function}${sft_function}

def forward(model, inputs):
    return model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        labels=inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100),
        use_cache=False,
        fused_lm_head=True,
    )


def log_probs(outputs, inputs):
    """Log-probability of each completion in nats: of the chosen ones, and of the rejected ones."""
    completion = inputs["completion_mask"]
    per_token = outputs.log_probs[:, -(completion.size(1) - 1) :]
    return $weighted.sum(dim=1).chunk(2)

${ld_function}${weights_function}
class Steps(TrainerCallback):
    """Skips a step that is not finite, trains the parameter learnt beside the policy, and prints the curve."""

    def __init__(self):
        self.mix = None if MIX is None else torch.optim.Adam(MIX.parameters(), lr=MIX_LEARNING_RATE)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        parameters = [*model.parameters(), *([] if MIX is None else MIX.parameters())]
        finite = all(bool(p.grad.isfinite().all()) for p in parameters if p.grad is not None)
        apply = finite or not SKIP_NONFINITE
        if not apply:
            model.zero_grad(set_to_none=True)
        if self.mix is not None:
            if apply:
                self.mix.step()
            self.mix.zero_grad()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            names = ("loss", "preference_loss", "sft_loss", "margin", "grad_norm", "learning_rate")
            line = {"step": state.global_step} | {name: logs[name] for name in names if name in logs}
            if MIX is not None:
                line["$learnt_name"] = MIX.value().item()
            print(json.dumps(line), flush=True)


def training_pairs():
    """The pairs in the order in which the trial saw them."""
    with open(HERE / "pairs.jsonl", encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file]
    order = json.loads((HERE / "order.json").read_text())
    return Dataset.from_list([pairs[index] for index in order])


$load


def main():
    on_cpu = not torch.cuda.is_available()
    arguments = DPOConfig(output_dir="$output", use_cpu=on_cpu, dataloader_pin_memory=not on_cpu, **ARGUMENTS)
    if MIX is not None:
        MIX.to(arguments.device)
    base = load_model()
    trainer = LossTrainer(
        model=$policy,
        ref_model=$ref_model,
        args=arguments,
        train_dataset=training_pairs(),
        processing_class=load_tokenizer(),
        peft_config=$peft_config,
        callbacks=[Steps()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    if len(sys.argv) > 1:
        trainer.save_model(sys.argv[1])


if __name__ == "__main__":
    main()
''')

TOKENIZER = Template("""\
def load_tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(**$where)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer""")

PLAIN_MODEL = Template("""\
def load_model():
    return AutoModelForCausalLM.from_pretrained(**$where, dtype=DTYPE, attn_implementation="$attention")


""")

QUANTIZED_MODEL = Template('''\
def load_model():
    model = AutoModelForCausalLM.from_pretrained(
        **$where,
        dtype=DTYPE,
        attn_implementation="$attention",
        device_map={"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"},$quantization
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # it would pack its weights again, with rounding
    return model


def adapted(model):
    """The model with its adapter in float32; TRL casts that of a model which says that it is quantised to bfloat16."""
    set_seed(ARGUMENTS["seed"])
    policy = get_peft_model(model, LoraConfig(**LORA))
    for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        vars(model).pop(flag, None)
    return policy


''')

GGUF_MODEL = Template('''\
def gguf():
    """The file inside an installed package, which is found without being imported."""
    (folder,) = importlib.util.find_spec(PACKAGE).submodule_search_locations
    return {"pretrained_model_name_or_path": folder, "gguf_file": GGUF}


def $load():
    model = AutoModelForCausalLM.from_pretrained(
        **gguf(),
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,  # as in the trial; float32 weights start from the same values
        attn_implementation="$attention",
    )
    return model.to(DTYPE)


''')

WHOLE_MODEL = '''\
WHOLE = tempfile.TemporaryDirectory()


def whole():
    """The file's model as a folder, since a model is quantised while it is loaded from one."""
    dequantised().save_pretrained(WHOLE.name)
    return {"pretrained_model_name_or_path": WHOLE.name}


'''

SFT_CONSTANTS = Template('''\
RULE, RULE_WEIGHT = $rule, $rule_weight
"""Scoring rule of the chosen completion's tokens, and the weight with which its mean is added."""
''')
SFT_TERM = " + RULE_WEIGHT * self.chosen_scores(model, inputs, loss)"
SFT_FUNCTION = '''
    def chosen_scores(self, model, inputs, loss):
        """Mean of the scoring rule over the tokens of each chosen completion, and over these."""
        names = ("input_ids", "attention_mask", "completion_mask")
        ids, attention, completion = (inputs[name].chunk(2)[0] for name in names)
        logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1]
        labels, scored = ids[:, 1:], completion[:, 1:].bool()
        means = [RULE(logits[i][scored[i]], labels[i][scored[i]]).mean() for i in range(len(ids))]
        score = torch.stack(means).mean()
        self._metrics["train"]["preference_loss"].append(loss.item())
        self._metrics["train"]["sft_loss"].append(score.item())
        return score
'''

WITH_REFERENCE = "reference_chosen_logps_B, reference_rejected_logps_B = self.reference_log_probs(model, inputs)"
WITHOUT_REFERENCE = (
    "reference_chosen_logps_B = reference_rejected_logps_B = torch.zeros_like(chosen_logps_B)  # the loss takes none"
)
REFERENCE_FUNCTION = Template("""
    @torch.no_grad()
    def reference_log_probs(self, model, inputs):
        was_training = model.training
        model.eval()
        try:
            $reference
        finally:
            model.train(was_training)
""")
MARGIN = 'self._metrics["train"]["margin"].append(margin_B.mean().item())'
WEIGHTED_MARGIN = "# A trial reports the margin of whole completions, which is another than this."
LD_CONSTANTS = Template('''\
LD_ALPHA = $ld_alpha
"""Weight of the tokens beyond the public length of a pair, that of its shorter completion."""
''')
LD_FUNCTION = '''
def token_weights(completion):
    """1 up to the public length of a pair and LD_ALPHA beyond, for policy and reference alike."""
    scored = completion[:, 1:]
    public = scored.sum(dim=1).view(2, -1).amin(dim=0).repeat(2)
    return torch.where(scored.cumsum(dim=1) > public[:, None], LD_ALPHA, 1.0)

'''

WEIGHTS_FUNCTION = '''
@torch.no_grad()
def pair_weights(outputs, inputs):
    """WPO's weight of each pair: how likely the policy finds its completions, beside what it would say itself."""
    completion = inputs["completion_mask"][:, 1:]
    likelier = (outputs.log_probs - outputs.log_sum_sq_probs)[:, -completion.size(1) :] * completion
    means = likelier.sum(dim=1) / completion.sum(dim=1).clamp(min=1)
    return means.view(2, -1).sum(dim=0).exp()

'''

ADAPTER_OFF = """\
with self.accelerator.unwrap_model(model).disable_adapter():
                return log_probs(forward(model, inputs), inputs)"""
SECOND_MODEL = "return log_probs(forward(self.ref_model, inputs), inputs)"
"""Where a trial's reference comes from: its own model without the adapter, or a model beside it."""
