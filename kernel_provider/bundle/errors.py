"""What can go wrong with a bundle, on either side. Standard library only."""

from kernel_provider.errors import SandboxError


class ThereAlreadyError(SandboxError):
    """Something would be written over, and nobody has said that it may be."""

    exit_code = 73
    summary = "{path} is there already{details}"
    fix = "{remedy}"


class BundleWriteError(SandboxError):
    """The bundle could not be written; nothing of it is left."""

    exit_code = 74
    summary = "the bundle {path} cannot be written: {reason}"
    fix = "give a file in a folder that you can write to, on a disk with room"


class NoRoomError(SandboxError):
    """A disk is too small for what is coming; nothing was changed."""

    exit_code = 74
    summary = "{what} takes about {needed} MB, and {folder} has {free} MB free"
    fix = "free some room on the disk of {folder}"


class WheelsError(SandboxError):
    """The wheels for the other machine could not be had."""

    exit_code = 65
    summary = "the wheels cannot be collected: {reason}{last_words}"
    fix = "{remedy}"


class WheelsUnfitError(SandboxError):
    """The wheels of a bundle are for another Python or another platform than this one."""

    exit_code = 78
    summary = "the wheels in {path} are for Python {theirs}, and this is Python {ours}"
    fix = "use that Python here, or bundle again there: executor-ml bundle FILE {options}"


class NoBundleError(SandboxError):
    """A file that is missing, or that ``executor-ml bundle`` has not written."""

    exit_code = 66
    summary = "{path} is no bundle: {reason}"
    fix = "give the file that executor-ml bundle wrote"


class BundleDamagedError(SandboxError):
    """A bundle that was cut short, or altered, on its way."""

    exit_code = 65
    summary = "{path} is damaged: {member} {reason}"
    fix = "carry it over again; sha256sum must tell what executor-ml bundle told"


class BundleFormatError(SandboxError):
    """A bundle that another version of this package has written."""

    exit_code = 65
    summary = (
        "{path} has the format {found}, and this version of executor-ml-kernel reads {expected}"
    )
    fix = "use the version that is in it: tar xf {path} install.py && python3 install.py {path}"


class ImageRefusedError(SandboxError):
    """An image that is not made by ``executor-ml build``, or not for this version."""

    exit_code = 65
    summary = "the image {image} is refused: {reason}"
    fix = "{remedy}"


class KernelspecUnknownError(SandboxError):
    """A kernelspec that the bundle does not hold."""

    exit_code = 78
    summary = "there is no kernelspec {name!r} in {path}; there is: {known}"
    fix = "take one of those with --kernelspec, or leave the option out for all of them"
