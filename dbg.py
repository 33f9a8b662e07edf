import sys, csv, shutil
from pathlib import Path
sys.path.insert(0,"tests")
from conftest import tiny_config
from im2wav.train import train
import torch
pairs=Path("/tmp/wt_training_pairs")
from conftest import command, ASSETS, IDS
if not pairs.exists():
    import tempfile
    folder=Path(tempfile.mkdtemp())
    with (ASSETS / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["id"] in IDS]
    for row in rows: row |= {"image": str(ASSETS / row["image"]), "audio": str(ASSETS / row["audio"])}
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0])); writer.writeheader(); writer.writerows(rows)
    assert command("embed", "encoder=efficientnet_lite2", f"input={folder}", f"out={pairs}", "loudness=-18") == 0
if __name__=="__main__":
    out=Path("/tmp/wt_training_dbg"); shutil.rmtree(out,ignore_errors=True)
    cfg = ["data.windows_per_epoch=5", "callbacks.checkpoint.every_n_steps=1", "callbacks.checkpoint.keep=3","callbacks.progress=null"]+sys.argv[1:]
    a=train(tiny_config("vqvae", pairs, out, *cfg, "trainer.max_steps=4"))
    (out/"last.ckpt").unlink()
    for n in (3,4): (out/f"checkpoints/step_0000000{n}.ckpt").unlink()
    b=train(tiny_config("vqvae", pairs, out, *cfg, "trainer.max_steps=4","resume=auto"))
    for v in (0,1): print([ (r["step"],r["train/loss"]) for r in csv.DictReader((out/f"csv/version_{v}/metrics.csv").open()) if r["train/loss"]])
