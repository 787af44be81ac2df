import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedprune.config import configure
from fedprune.tasks import imagefolder
from fedprune.tasks.catalog import TASKS
from fedprune.tasks.imagefolder import image_places, pixels
from fedprune.tasks.task import output_of

Image = pytest.importorskip("PIL.Image")


def saved(path: Path, values: Any, **keys: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values)).save(path, **keys)
    return path


def test_a_pixel_is_what_it_was_in_every_mode(tmp_path):
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    grey = pixels(str(saved(tmp_path / "grey.png", ramp)), 8, grey=True)
    assert torch.equal(grey[0], torch.from_numpy(ramp))
    deep = saved(tmp_path / "deep.png", ramp.astype(np.uint16) * 257)
    assert torch.equal(pixels(str(deep), 8, grey=True), grey)
    for kind in (np.int32, np.float32):
        with pytest.raises(ValueError, match="32 bits a pixel"):
            pixels(str(saved(tmp_path / "deeper.tif", ramp.astype(kind))), 8, grey=True)
    colour = np.stack([ramp, ramp // 2, 255 - ramp], -1)
    found = pixels(str(saved(tmp_path / "colour.png", colour)), 8, grey=False)
    assert torch.equal(found, torch.from_numpy(colour).permute(2, 0, 1))
    clear = np.concatenate([colour, np.zeros((8, 8, 1), np.uint8)], -1)
    assert int(pixels(str(saved(tmp_path / "clear.png", clear)), 8, grey=False).min()) == 255


def test_an_image_is_turned_and_stretched(tmp_path):
    values = np.zeros((8, 16, 3), np.uint8)
    values[:, :8] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees: the left becomes the top
    found = pixels(str(saved(tmp_path / "x.png", values, exif=exif)), 8, grey=False)
    assert found.shape == (3, 8, 8)
    assert found[:, :3].min() == 255
    assert found[:, 5:].max() == 0


@pytest.fixture
def folder(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(60):
        values = rng.integers(0, 255, (9, 9), np.uint8)
        saved(tmp_path / "own" / f"w{i % 3}" / "ab"[i % 2] / f"{i}.PNG", values)
        saved(tmp_path / "flat" / "ab"[i % 2] / f"{i}.png", values)
    (tmp_path / "own/w0/a/readme.txt").write_text("no image")
    saved(tmp_path / "own/.cache/a/x.png", np.zeros((9, 9), np.uint8))
    return tmp_path


@pytest.mark.parametrize("model", TASKS["image-classification"].models)
def test_folders_are_owners_and_classes(folder, asked, model):
    keys = {"length": 8, "clients": 3, "split": "natural", "model": model}
    config = asked("image-classification", data=str(folder / "own"), **keys)
    shards = imagefolder._shards(config)
    sizes = [sum(len(p["labels"]) for p in (s.train, s.validation, s.test)) for s in shards]
    assert sizes == [20] * 3
    assert imagefolder._names_of_classes(config) == ["a", "b"]
    task, batch = TASKS["image-classification"], shards[0].train
    assert batch["images"].shape[1:] == ((1 if model.endswith("grey") else 3), 8, 8)
    assert 0 <= float(batch["images"].min()) < float(batch["images"].max()) <= 1
    assert torch.isfinite(task.loss(task.model(config), batch).total)


def test_all_owners_of_images_are_clients_unless_fewer_are_asked_for(folder):
    keys = {"task": "image-classification", "data": str(folder / "own"), "split": "natural"}
    assert configure(keys).clients == 3
    more = configure({**keys, "clients": 5})
    with pytest.raises(ValueError, match=r"clients=5: data='.*own' makes 3; allowed: 1 to 3"):
        imagefolder._shards(more)


def test_what_is_no_folder_of_images_is_named(folder, asked):
    flat = asked("image-classification", data=str(folder / "flat"), split="natural", length=8)
    with pytest.raises(ValueError, match="no folder says whose image it is"):
        imagefolder._shards(flat)
    with pytest.raises(ValueError, match="lies among others; allowed: all as CLASS/FILE"):
        image_places(str(folder))
    only = saved(folder / "one/w0/x.png", np.zeros((9, 9), np.uint8)).parents[1]
    with pytest.raises(ValueError, match="one class, 'w0'"):
        imagefolder._names_of_classes(asked("image-classification", data=str(only)))
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no image in it"):
        image_places(str(folder / "empty"))
    (folder / "flat/c").mkdir()
    with pytest.raises(ValueError, match="no image in any folder 'c' of a class"):
        imagefolder._names_of_classes(asked("image-classification", data=str(folder / "flat")))
    (folder / "flat/c").rmdir()
    bad = folder / "flat/a/0.png"
    bad.write_bytes(b"no image")
    with pytest.raises(ValueError, match=re.escape(str(bad))):
        imagefolder._shards(asked("image-classification", data=str(folder / "flat"), length=8))


def test_a_classifier_of_a_folder_sees_what_it_was_trained_on(folder, tmp_path):
    import json

    import transformers as t

    settings = t.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        image_size=8, patch_size=4, num_channels=1, num_labels=2,
    )  # fmt: skip
    vit, saved_at = t.ViTForImageClassification(settings), tmp_path / "vit"
    vit.save_pretrained(saved_at)
    said = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.25], "image_std": [0.5]}
    (saved_at / "preprocessor_config.json").write_text(json.dumps(said))
    keys = {"task": "image-classification", "data": str(folder / "own"), "clients": 3}
    task = TASKS["image-classification"]
    asked = configure({**keys, "model": str(saved_at), "length": 8})
    plain = configure({**keys, "model": "vit-grey", "length": 8})
    images, as_they_are = (task.shards(c)[0].train["images"] for c in (asked, plain))
    assert torch.allclose(images, (as_they_are - 0.25) / 0.5)
    model = task.model(asked).eval()
    assert torch.allclose(model(images).logits, vit.eval()(images).logits)
    assert output_of(task, model) == ("classifier",)
    with pytest.raises(ValueError, match="reads images of 8 x 8 pixels; allowed: 8"):
        task.model(configure({**keys, "model": str(saved_at), "length": 16}))
