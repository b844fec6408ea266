"""Model cards of trained checkpoints: how to open them and what they were trained on."""

from pathlib import Path

from grouping_zoo.engine.recipe import RunConfig
from grouping_zoo.hf.checkpoint_folder import zoo_models

PROJECT = "[grouping_zoo](https://github.com/grouping-zoo/grouping-zoo)"


def vision_card(run: RunConfig, architecture: str, data: str, method: str, auto_class: str) -> str:
    """Card of a network trained on images, to which `publish` adds the metrics.

    Args:
        run: the run that trained it.
        architecture: timm name of the network.
        data: name of the training images.
        method: name of the training.
        auto_class: transformers class that opens the checkpoint.
    """
    name = Path(run.output_dir).name
    lines = ["import grouping_zoo, timm", "", f'model = timm.create_model("local-dir:{name}", pretrained=True)']
    if architecture.split(".")[0] in zoo_models():
        lines += ["", f"from transformers import {auto_class}", "", f'model = {auto_class}.from_pretrained("{name}")']
    code = "\n".join(lines)
    return f"""---
library_name: timm
license: apache-2.0
tags: [grouping-zoo, {architecture.split("_")[0]}]
---

# {name}

`{architecture}` trained by {method} in {PROJECT} for
{run.steps} updates of {run.batch_size} images from "{data}".

```python
{code}
```
"""


def image_text_card(run: RunConfig, architecture: str, data: str, metrics: dict[str, float]) -> str:
    """Card of two towers trained on images and captions.

    Args:
        run: the run that trained them.
        architecture: timm name of the vision tower.
        data: name of the training images.
        metrics: of the evaluation.
    """
    name, family = Path(run.output_dir).name, architecture.split("_")[0]
    rows = "".join(f"| {key} | {value:.1f} |\n" for key, value in metrics.items())
    table = f"| metric | value |\n|---|---|\n{rows}" if metrics else "Not evaluated.\n"
    return f"""---
library_name: timm
license: apache-2.0
pipeline_tag: zero-shot-image-classification
tags: [grouping-zoo, {family}, zero-shot, image-segmentation]
---

# {name}

`{architecture}` and a text encoder trained by {PROJECT} for
{run.steps} updates of {run.batch_size} image-text pairs from "{data}".
It groups the pixels of an image and names the groups by text.

```python
import grouping_zoo, timm
from transformers import AutoModel, AutoProcessor

features = timm.create_model("local-dir:{name}", pretrained=True)  # the vision tower
model, processor = AutoModel.from_pretrained("{name}"), AutoProcessor.from_pretrained("{name}")  # both towers
```

```
grouping-zoo segment photo.jpg --model {name} --classes "ball, star"
```

{table}"""
