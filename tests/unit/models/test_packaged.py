from ray_rl.models.packaged import resolve_model


def test_a_folder_is_the_same_for_workers_with_another_working_directory(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("./model") == resolve_model("~/model") == str(tmp_path / "model")


def test_what_is_no_folder_is_the_name_of_a_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_model("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"
