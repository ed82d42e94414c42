"""``python -m scatterdp finetune``: a network pre-trained on public images, its first layers frozen, the others tuned with DP on private images.

    python -m scatterdp finetune --dataset=PUBLIC --disable_dp --run_dir=runs/public --num_train_epochs=80 --base_learning_rate=0.05
    python -m scatterdp finetune --dataset=PRIVATE --finetune_path=runs/public/model.safetensors --num_layers_to_freeze=6 \\
        --dp_sigma=0.058014 --dp_clip_norm=1.0 --grad_acc_steps=512 --num_train_epochs=70 --base_learning_rate=0.03

The weights and the images of the first command are taken to be public; the certificate of the second says so.
"""

from __future__ import annotations

import tyro

from scatterdp.finetuning import FinetuneConfig
from scatterdp.finetuning import run as run_config


def run(argv: list[str]) -> int:
    """Run ``finetune`` with its arguments.

    Raises:
        UserError: see the message.
    """
    run_config(
        tyro.cli(FinetuneConfig, prog="scatterdp finetune", args=argv, use_underscores=True, description=__doc__)
    )
    return 0
