from pathlib import Path

from benchmarks.sides import naive_settings
from benchmarks.sweep import Size, smollm2_document

from tune_dlrml.config.loading import parse_config


def settings(tmp_path, size):
    document = smollm2_document(tmp_path, size, tmp_path / "no real pairs")
    return naive_settings(parse_config(document, source="the test"), tmp_path / "out")


def test_the_naive_side_trains_the_points_of_the_grid_in_its_order_and_in_the_words_of_trl(tmp_path):
    points = settings(tmp_path, Size())["points"]
    assert [(point["loss"], point["beta"], point["learning_rate"]) for point in points] == [
        ("sigmoid", 0.05, 2e-4),
        ("sigmoid", 0.05, 8e-4),
        ("sigmoid", 0.2, 2e-4),
        ("sigmoid", 0.2, 8e-4),
        ("discopop", 0.05, 2e-4),
        ("discopop", 0.05, 8e-4),
        ("discopop", 0.2, 2e-4),
        ("discopop", 0.2, 8e-4),
    ]


def test_the_naive_side_has_the_same_budget_batches_precision_and_adapter(tmp_path):
    known = settings(tmp_path, Size())
    assert (known["steps"], known["grace_period"], known["reduction_factor"]) == (12, 4, 4)
    assert (known["dtype"], known["training"]["bf16"], known["training"]["max_length"]) == ("bfloat16", True, 192)
    assert known["training"]["per_device_train_batch_size"] * known["training"]["gradient_accumulation_steps"] == 4
    assert (known["lora"]["r"], known["lora"]["target_modules"]) == (16, "all-linear")
    assert known["gguf"] == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert len(Path(known["eval"]).read_text().splitlines()) == 64


def test_a_shortened_sweep_is_shortened_on_both_sides(tmp_path):
    known = settings(tmp_path, Size(trials=2, steps=3, concurrent=2))
    assert (len(known["points"]), known["steps"], known["grace_period"], known["concurrent"]) == (2, 3, 3, 2)
