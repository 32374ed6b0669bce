"""What `pyproject.toml` cannot say: Streamlit's configuration lies in a folder that cannot be named as a package."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CONFIGURATION = ".streamlit/config.toml"


class BuildWithConfiguration(build_py):
    """Takes the configuration into the wheel; an editable install finds it in the clone."""

    def run(self) -> None:
        """Build the packages, then put the configuration beside them."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, CONFIGURATION)
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(CONFIGURATION, str(target))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return every file that a build writes."""
        return [*super().get_outputs(include_bytecode), str(Path(self.build_lib, CONFIGURATION))]


setup(cmdclass={"build_py": BuildWithConfiguration})
