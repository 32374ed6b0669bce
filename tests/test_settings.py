"""Settings: what may be set, what is refused, and that `.env.example` says the truth about both."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from dotenv import dotenv_values
from pydantic import ValidationError

from modules.settings import MEBIBYTE, PROJECT_ROOT, SETTINGS_FOLDER, Colormap, Settings

EXAMPLE = PROJECT_ROOT / ".env.example"


def read(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Settings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Settings(_env_file=None)


# ── .env.example ─────────────────────────────────────────────────────────────────────────────────────────────────────


def undescribed(example: str, descriptions: Mapping[str, str | None]) -> list[str]:
    """Return the lines of an example file that set something without its own description right above."""
    lines = example.splitlines()
    return [
        line
        for above, line in zip(["", *lines], lines, strict=False)
        if "=" in line and not line.startswith("#") and above != f"# {descriptions.get(line.split('=')[0])}"
    ]


def test_the_example_lists_each_setting_once_and_nothing_else() -> None:
    lines = EXAMPLE.read_text("utf-8").splitlines()
    names = [line.partition("=")[0] for line in lines if line and not line.startswith("#")]
    assert names == [name.upper() for name in Settings.model_fields]


def test_the_example_holds_the_defaults() -> None:
    assert Settings(_env_file=EXAMPLE) == Settings(_env_file=None)
    assert Settings(_env_file=EXAMPLE).model_fields_set == set(Settings.model_fields)


def test_each_setting_of_the_example_is_described_in_the_words_of_its_field() -> None:
    descriptions = {name.upper(): field.description for name, field in Settings.model_fields.items()}
    assert all(descriptions.values())
    assert undescribed(EXAMPLE.read_text("utf-8"), descriptions) == []


def test_a_setting_that_is_not_described_would_be_noticed() -> None:
    descriptions = {"A": "First.", "B": "Second."}
    assert undescribed("# First.\nA=1\n\n# Second.\nB=2\n", descriptions) == []
    assert undescribed("# First.\nA=1\nB=2\n", descriptions) == ["B=2"]
    assert undescribed("# Second.\nA=1\n\nC=3\n", descriptions) == ["A=1", "C=3"]


def test_the_example_holds_no_secret() -> None:
    secret = [name for name in dotenv_values(EXAMPLE) if name.endswith(("_KEY", "_TOKEN", "_PASSWORD", "_SECRET"))]
    assert not any(dotenv_values(EXAMPLE)[name] for name in secret)


# ── Values ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_defaults_stay_on_this_machine_and_need_nothing() -> None:
    settings = Settings(_env_file=None)
    assert settings.backend_host == "127.0.0.1"
    assert settings.api_url == "http://127.0.0.1:8000"
    assert (settings.medgemma_mode, settings.medgemma_fallback) == ("local", ("dummy",))
    assert settings.cxr_weights == "embedded"
    assert settings.max_upload_bytes == 50 * MEBIBYTE
    assert settings.max_pixels == 40_000_000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MEDGEMMA_MODE", "gemini"),
        ("MEDGEMMA_MODE", ""),
        ("MEDGEMMA_FALLBACK", "api,gemini"),
        ("CXR_WEIGHTS", ""),
        ("CXR_WEIGHTS_SHA256", "abc"),
        ("CXR_WEIGHTS_SHA256", "g" * 64),
        ("CNN_DEVICE", "tpu"),
        ("CNN_ENGINE", "magic"),
        ("CNN_PRECISION", "int8"),
        ("CNN_BATCH", "0"),
        ("CNN_BATCH", "65"),
        ("CNN_COMPILE", "perhaps"),
        ("CNN_MIRROR_CHECK", "perhaps"),
        ("HEATMAP_COLORMAP", "rainbow"),
        ("BACKEND_HOST", ""),  # asyncio takes it for every interface of the machine
        ("BACKEND_PORT", "0"),
        ("BACKEND_PORT", "65536"),
        ("BACKEND_PORT", "eight thousand"),
        ("DASHBOARD_PORT", "-1"),
        ("DASHBOARD_TIMEOUT_S", "0"),
        ("DASHBOARD_TIMEOUT_S", "nan"),
        ("DASHBOARD_TIMEOUT_S", "inf"),  # no socket can wait that long
        ("MAX_UPLOAD_MB", "0"),
        ("MAX_UPLOAD_MB", "1e9"),
        ("MAX_MEGAPIXELS", "0"),
        ("MAX_CONCURRENT_ANALYSES", "0"),
        ("MAX_QUEUED_ANALYSES", "-1"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_an_unknown_or_unsafe_value_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    with pytest.raises(ValidationError, match=name.lower()):
        read(monkeypatch, **{name: value})


@pytest.mark.parametrize("name", ["CXR_WEIGHTS_SHA256", "BACKEND_URL"])
@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_optional_value_means_unset(monkeypatch: pytest.MonkeyPatch, name: str, empty: str) -> None:
    assert read(monkeypatch, **{name: empty}) == Settings(_env_file=None)


@pytest.mark.parametrize(
    ("value", "readers"),
    [
        ("api,dummy", ("api", "dummy")),
        (" api , openai,, dummy ", ("api", "openai", "dummy")),
        ("dummy", ("dummy",)),
        ("", ()),
    ],
)
def test_the_fallback_is_a_list_separated_by_commas(
    monkeypatch: pytest.MonkeyPatch, value: str, readers: tuple[str, ...]
) -> None:
    assert read(monkeypatch, MEDGEMMA_FALLBACK=value).medgemma_fallback == readers


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({"BACKEND_HOST": "0.0.0.0"}, "http://127.0.0.1:8000"),
        ({"BACKEND_HOST": "::"}, "http://127.0.0.1:8000"),
        ({"BACKEND_HOST": "::1", "BACKEND_PORT": "9000"}, "http://[::1]:9000"),
        ({"BACKEND_HOST": "2001:db8::7"}, "http://[2001:db8::7]:8000"),
        ({"BACKEND_HOST": "films.example"}, "http://films.example:8000"),
        ({"BACKEND_URL": "https://films.example/api/", "BACKEND_PORT": "9000"}, "https://films.example/api"),
    ],
)
def test_the_dashboard_finds_the_api_where_it_can_be_reached(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], url: str
) -> None:
    assert read(monkeypatch, **environment).api_url == url


def test_the_environment_comes_before_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("HEATMAP_COLORMAP=jet\nBACKEND_PORT=9000\nSOMETHING_ELSE=1\n", "utf-8")
    monkeypatch.setenv("BACKEND_PORT", "9001")
    settings = Settings(_env_file=file)
    assert (settings.heatmap_colormap, settings.backend_port) == (Colormap.JET, 9001)


def test_a_clone_reads_its_own_env_file_and_none_of_the_current_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("BACKEND_PORT=9000\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    assert SETTINGS_FOLDER == PROJECT_ROOT
    assert Settings.model_config["env_file"] == PROJECT_ROOT / ".env"
    assert Settings().backend_port != 9000


def test_settings_cannot_be_changed_once_made() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings(_env_file=None).backend_port = 9000  # type: ignore[misc]
