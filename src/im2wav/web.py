"""`python -m im2wav.web`: a web page that generates audio for photos and videos."""

from omegaconf import DictConfig

from im2wav.cli import command, instantiate, run


def web(cfg: DictConfig) -> None:
    """Serve the page until the command is interrupted; see `im2wav.webpage.serving.serve`."""
    from im2wav.webpage.serving import serve

    serve(cfg, instantiate)


@command("web")
def main(cfg: DictConfig) -> None:
    """Run the command."""
    run(web, cfg)


if __name__ == "__main__":
    main()
