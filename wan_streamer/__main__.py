"""`python -m wan_streamer` is `wan-streamer`."""

from wan_streamer.cli.app import main

if __name__ == "__main__":
    main()
