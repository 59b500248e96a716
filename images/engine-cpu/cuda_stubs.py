"""cuda_stubs.py SITE_PACKAGES: let a CUDA build of torch import and run on the CPU without the CUDA libraries.

For each CUDA library that torch's own libraries link and nobody ships, a stub with the same soname and symbol versions
is compiled into torch/lib, where torch's run path finds it. Every function returns 100 (cudaErrorNoDevice). The real
libcudart is kept: torch asks it how many GPUs there are. Needs gcc and binutils. For test images only.
"""

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

CUDA_LIBRARY = re.compile(
    r"lib(cudart|cupti|cublas|cublasLt|cudnn|cufft|cufile|curand|cusolver|cusparse|cusparseLt|nccl|nvrtc|nvshmem_host"
    r"|nvJitLink)\.so"
)
CUDA_FUNCTION = re.compile(r"_?_?(cu[a-zA-Z]|nccl|nvrtc|nvshmem)")


def output(*argv: str | Path) -> list[str]:
    """The lines that a program prints."""
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()


def missing_libraries(libraries: list[Path], shipped: set[str]) -> set[str]:
    """The sonames of CUDA libraries that are linked but not there."""
    lines = (line for library in libraries for line in output("readelf", "-d", library))
    needed = {match[1] for line in lines if (match := re.search(r"NEEDED.*\[(.+)\]", line))}
    return {name for name in needed - shipped if CUDA_LIBRARY.match(name)}


def version_homes(libraries: list[Path]) -> dict[str, str]:
    """Symbol version -> the soname that must define it."""
    homes: dict[str, str] = {}
    for library in libraries:
        home = None
        for line in output("readelf", "-V", "-W", library):
            if file := re.search(r"File: (\S+)\s+Cnt", line):
                home = file[1]
            elif home and (name := re.search(r"Name: (\S+)\s+Flags", line)):
                homes[name[1]] = home
    return homes


def symbols(libraries: list[Path], which: str) -> set[str]:
    """Dynamic symbols, `defined` or `undefined` (weak ones don't count), with their versions."""
    lines = (line.split() for library in libraries for line in output("nm", "-D", f"--{which}-only", library))
    return {words[-1] for words in lines if which == "defined" or words[0] == "U"}


def compile_stub(target: Path, wanted: dict[str, list[str]]) -> None:
    """Compile one library of functions that all say that there is no GPU; `wanted` is version -> symbols."""
    code = "".join(f"int {name}(void){{return 100;}}\n" for names in wanted.values() for name in names)
    script = "".join(f"{version} {{ global: {'; '.join(names)}; }};\n" for version, names in wanted.items() if version)
    with tempfile.NamedTemporaryFile("w", suffix=".map") as versions:
        versions.write(script)
        versions.flush()
        flags = ["-shared", "-fPIC", "-Os", "-w", "-fno-builtin", "-nostdlib", f"-Wl,-soname,{target.name}"]
        if script:
            flags.append(f"-Wl,--version-script={versions.name}")
        subprocess.run(["gcc", *flags, "-x", "c", "-", "-o", target], input=code, text=True, check=True)


def main(site_packages: str) -> None:
    """Write the stubs that this installation lacks."""
    folder = Path(site_packages, "torch", "lib")
    own = sorted(folder.glob("*.so*"))
    present = [*own, *Path(site_packages, "nvidia").glob("**/*.so*")]
    missing = missing_libraries(own, {library.name for library in present})
    homes = version_homes(own)
    defined = {symbol.partition("@")[0] for symbol in symbols(present, "defined")}
    wanted: dict[str, dict[str, list[str]]] = {soname: defaultdict(list) for soname in missing}
    for symbol in sorted(symbols(own, "undefined")):
        name, _, version = symbol.partition("@")
        home = homes.get(version, "")
        if name in defined or (home and home not in missing) or (not home and not CUDA_FUNCTION.match(name)):
            continue
        wanted[home or min(missing)][version].append(name)
    for soname, by_version in wanted.items():
        compile_stub(folder / soname, by_version)
        print(soname, {version or "unversioned": len(names) for version, names in by_version.items()})


if __name__ == "__main__":
    main(sys.argv[1])
