"""The callback in the real Lightning, where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from train.small import small_model

from soupkit.merge.running import Bema, Ema
from soupkit.train.ema import EMAOptimizer

lightning = pytest.importorskip("lightning.pytorch")
RULES = {"ema": Ema(0.7), "bema": Bema()}
pytestmark = pytest.mark.filterwarnings("ignore")


def made(seed: int, *, wrap: bool = False) -> Any:
    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = small_model(seed=seed)
            self.losses: list[float] = []

        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            torch.manual_seed(100 * self.current_epoch + number)
            return self.net(batch[0]).square().mean()

        def validation_step(self, batch: Any, _number: int) -> None:
            self.losses.append(float(self.net(batch[0]).square().mean()))

        def configure_optimizers(self) -> Any:
            inner = torch.optim.AdamW(self.parameters(), lr=1e-2)
            return EMAOptimizer(inner, self, decay=0.7) if wrap else inner

    return Module()


def fit(folder: Path, module: Any, callbacks: list[Any], *, epochs: int, resume: Any = None) -> Any:
    draw = torch.Generator().manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(8, 3, 16, 16, generator=draw))
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=callbacks,
    )
    trainer.fit(module, loader, loader, ckpt_path=resume)
    return trainer


def test_interrupted_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    from soupkit.integrations.lightning import AveragesCallback

    whole, module = AveragesCallback(RULES, evaluate="ema"), made(0)
    fit(tmp_path / "whole", module, [whole], epochs=3)
    half = AveragesCallback(RULES, evaluate="ema")
    trainer = fit(tmp_path / "half", made(0), [half], epochs=1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    again, other = AveragesCallback(RULES, evaluate="ema"), made(5)
    fit(tmp_path / "again", other, [again], epochs=3, resume=str(tmp_path / "half.ckpt"))
    for name in RULES:
        for key, tensor in whole.averages.averaged(name).items():
            assert torch.equal(again.averages.averaged(name)[key], tensor), (name, key)
    saved = torch.load(tmp_path / "half.ckpt", weights_only=False)
    assert torch.equal(
        saved["ema_state_dict"]["net.conv.weight"], half.averages.averaged("ema")["net.conv.weight"]
    )
    with whole.averages.swapped("ema"), torch.no_grad():
        draw = torch.Generator().manual_seed(0)
        value = module.net.eval()(torch.randn(8, 3, 16, 16, generator=draw)[4:]).square().mean()
    assert module.losses[-1] == pytest.approx(float(value), rel=1e-5)


def test_it_takes_the_optimizer_that_averages(tmp_path: Path) -> None:
    from soupkit.integrations.lightning import AveragesCallback

    callback, module, wrapped = AveragesCallback({"ema": Ema(0.7)}), made(0), made(0, wrap=True)
    fit(tmp_path / "a", module, [callback], epochs=2)
    trainer = fit(tmp_path / "b", wrapped, [], epochs=2)
    average = trainer.optimizers[0].ema_state_dict()
    for key, tensor in callback.averages.averaged("ema").items():
        assert torch.equal(average[key], tensor), key
