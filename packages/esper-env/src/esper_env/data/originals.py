"""The downloadable datasets: names, sizes, URLs and checksums of their original files."""

from __future__ import annotations

from esper_env.data.sources import DataFile, Download, Source

_TORONTO = "https://www.cs.toronto.edu/~kriz/"
# Fixed commits, so that the files behind these URLs do not change.
_ZALANDO = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/b2617bb6d3ffa2e429640350f613e3291e10b141/"
    "data/fashion/"
)
_TINYSTORIES = (
    "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/f54c09fd23315a6f9c86f9dc80f725de7d8f9c64/"
)

_PYTHON, _MATLAB, _PACKED = "the Python version", "the MATLAB version", "the archive, not unpacked"

#: The checksums of CIFAR-10, CIFAR-100 and Fashion-MNIST come from TensorFlow Datasets' url_checksums (cifar10.txt,
#: cifar100.txt, fashion_mnist.txt). The same files match the MD5 sums on the datasets' own pages. The checksums of
#: TinyStories are the Git LFS object ids that Hugging Face shows.
ORIGINALS: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="cifar10",
            title="CIFAR-10",
            description="60,000 colour photographs, 32x32, 10 classes",
            version=" (the binary version)",
            homepage=f"{_TORONTO}cifar.html",
            licence="none stated; cite Krizhevsky (2009)",
            folder="cifar-10-batches-bin",
            files=tuple(
                DataFile(name, 30_730_000) for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
            ),
            downloads=(
                Download(
                    f"{_TORONTO}cifar-10-binary.tar.gz",
                    170_052_171,
                    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                ),
            ),
            lookalikes={
                "cifar-10-binary.tar.gz": _PACKED,
                "cifar-10-python.tar.gz": _PYTHON,
                "cifar-10-batches-py": _PYTHON,
                "cifar-10-batches-mat": _MATLAB,
            },
        ),
        Source(
            name="cifar100",
            title="CIFAR-100",
            description="60,000 colour photographs, 32x32, 100 classes",
            version=" (the binary version)",
            homepage=f"{_TORONTO}cifar.html",
            licence="none stated; cite Krizhevsky (2009)",
            folder="cifar-100-binary",
            files=(DataFile("train.bin", 153_700_000), DataFile("test.bin", 30_740_000)),
            downloads=(
                Download(
                    f"{_TORONTO}cifar-100-binary.tar.gz",
                    168_513_733,
                    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
                ),
            ),
            lookalikes={
                "cifar-100-binary.tar.gz": _PACKED,
                "cifar-100-python.tar.gz": _PYTHON,
                "cifar-100-python": _PYTHON,
                "cifar-100-matlab": _MATLAB,
            },
        ),
        Source(
            name="fashion-mnist",
            title="Fashion-MNIST",
            description="70,000 grey pictures of clothes, 28x28, 10 classes",
            version="",
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            licence="MIT",
            folder="fashion-mnist",
            files=(
                DataFile("train-images-idx3-ubyte.gz", 26_421_880, "train-images-idx3-ubyte", 47_040_016),
                DataFile("train-labels-idx1-ubyte.gz", 29_515, "train-labels-idx1-ubyte", 60_008),
                DataFile("t10k-images-idx3-ubyte.gz", 4_422_102, "t10k-images-idx3-ubyte", 7_840_016),
                DataFile("t10k-labels-idx1-ubyte.gz", 5_148, "t10k-labels-idx1-ubyte", 10_008),
            ),
            downloads=(
                Download(
                    f"{_ZALANDO}train-images-idx3-ubyte.gz",
                    26_421_880,
                    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                ),
                Download(
                    f"{_ZALANDO}train-labels-idx1-ubyte.gz",
                    29_515,
                    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                ),
                Download(
                    f"{_ZALANDO}t10k-images-idx3-ubyte.gz",
                    4_422_102,
                    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                ),
                Download(
                    f"{_ZALANDO}t10k-labels-idx1-ubyte.gz",
                    5_148,
                    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                ),
            ),
        ),
        Source(
            name="tinystories",
            title="TinyStories",
            description="2.7 million short stories in plain English",
            version=" (version 2, by GPT-4)",
            homepage="https://huggingface.co/datasets/roneneldan/TinyStories",
            licence="CDLA-Sharing-1.0",
            folder="tinystories",
            files=(
                DataFile("TinyStoriesV2-GPT4-train.txt", 2_227_753_162),
                DataFile("TinyStoriesV2-GPT4-valid.txt", 22_502_601),
            ),
            downloads=(
                Download(
                    f"{_TINYSTORIES}TinyStoriesV2-GPT4-train.txt",
                    2_227_753_162,
                    "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",
                ),
                Download(
                    f"{_TINYSTORIES}TinyStoriesV2-GPT4-valid.txt",
                    22_502_601,
                    "6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d",
                ),
            ),
            lookalikes={
                "TinyStories_all_data.tar.gz": "the version with the prompts",
                "TinyStories-train.txt": "version 1",
            },
        ),
    )
}
