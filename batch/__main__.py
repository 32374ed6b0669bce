"""Runs `python -m batch`; worker processes import this file too, so it holds nothing."""

if __name__ == "__main__":
    from batch.command import main

    raise SystemExit(main())
