"""`python -m guardrail_vl` is `guardrail-vl`."""

from guardrail_vl.cli import main

if __name__ == "__main__":
    main()
