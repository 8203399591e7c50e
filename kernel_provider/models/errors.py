"""What can be wrong with models, as a person meets it."""

from kernel_provider.errors import ConfigError, SandboxError


class RegistryError(SandboxError):
    """The registry's folder cannot be read or written; nothing in it was changed."""

    exit_code = 73
    summary = "the model registry {root} cannot be used: {reason}"
    fix = "free or mend that folder, or set EXECUTOR_ML_MODELS to another one"


class UnknownModelError(ConfigError):
    """No model of that name is in the registry."""

    summary = "{source}: there is no model {model!r} in {root}{suggestion}"
    fix = (
        "add it: executor-ml models add {model} FOLDER (or --from-cache); "
        "or take one that is there: {known}"
    )


class ModelAlteredError(SandboxError):
    """A file of a model is not what was added; no kernel gets to see it (D6)."""

    exit_code = 65
    summary = "the model {model} is not what was added: {file} {reason}"
    fix = "add it again: executor-ml models add {model} FOLDER --replace"


class ModelRefusedError(SandboxError):
    """A model that cannot be taken into the registry; nothing was added."""

    exit_code = 65
    summary = "the model {model} was not added: {reason}"
    fix = "{remedy}"


class ArchiveWriteError(SandboxError):
    """An archive of models could not be written; what was there is as it was."""

    exit_code = 74
    summary = "the archive {file} cannot be written: {reason}"
    fix = "give a file in a folder that you can write to, on a disk with room"


class ArchiveMissingError(SandboxError):
    """The file to import is not there, or may not be read."""

    exit_code = 66
    summary = "{file} cannot be read: {reason}"
    fix = "give a file that executor-ml models export wrote"


class ArchiveError(SandboxError):
    """A file that is no archive of models, or not a whole one; nothing was added."""

    exit_code = 65
    summary = "{file} cannot be imported: {reason}"
    fix = "make it anew with executor-ml models export, and compare the copies"
