"""The parts of an evaluation's report page, with the script and the style that make it answer to the reader."""
