"""Writes resenc_unet.golden.npz: a small network of nnU-Net's own software, and what it computes.

    python make_resenc_golden.py resenc_unet.golden.npz

It needs PyTorch and dynamic-network-architectures (0.4.4 and torch 2.13.0 on a CPU wrote the file).
The file holds the input `x`, the logits `y`, the gradient `gradient` of the sum of logits times
`weights` with respect to the input, and each parameter under voxtune's path and layout; the spatial
axes are the first after the batch, channels the last. With no argument it prints the numbers of
parameters that the tests quote.
"""

import sys

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

SMALL = {"features": (4, 6, 6), "blocks": (1, 2, 1), "strides": (1, 2, 2), "convs": 2}
DEFAULT = {
    "features": (32, 64, 128, 256, 320, 320),
    "blocks": (1, 3, 4, 6, 6, 6),
    "strides": (1, 2, 2, 2, 2, 2),
    "convs": 1,
}
LARGE = {  # seven stages, for blocks of 256 voxels
    "features": (32, 64, 128, 256, 320, 320, 320),
    "blocks": (1, 3, 4, 6, 6, 6, 6),
    "strides": (1, 2, 2, 2, 2, 2, 2),
    "convs": 1,
}


def original(channels, outputs, features, blocks, strides, convs):
    """The network as nnU-Net's planner asks for it."""
    return ResidualEncoderUNet(
        input_channels=channels,
        n_stages=len(features),
        features_per_stage=features,
        conv_op=torch.nn.Conv3d,
        kernel_sizes=3,
        strides=strides,
        n_blocks_per_stage=blocks,
        num_classes=outputs,
        n_conv_per_stage_decoder=convs,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )


def count(network):
    """All parameters, and those of the heads at lower resolutions."""
    lower = [each for head in network.decoder.seg_layers[:-1] for each in head.parameters()]
    whole = sum(each.numel() for each in network.parameters())
    return whole, sum(each.numel() for each in lower)


def unit(module, path):
    """A convolution with its norm."""
    found = {f"{path}/conv/kernel": module.conv.weight.permute(2, 3, 4, 1, 0)}
    if module.conv.bias is not None:
        found[f"{path}/conv/bias"] = module.conv.bias
    return {
        **found,
        f"{path}/norm/scale": module.norm.weight,
        f"{path}/norm/bias": module.norm.bias,
    }


def parameters(network):
    """Each parameter under its path here."""
    found = unit(network.encoder.stem.convs[0], "stem")
    for number, stage in enumerate(network.encoder.stages, start=1):
        for place, block in enumerate(stage.blocks, start=1):
            path = f"encoder{number}/block{place}"
            found |= unit(block.conv1, f"{path}/unit1") | unit(block.conv2, f"{path}/unit2")
            if isinstance(block.skip, torch.nn.Sequential) and hasattr(block.skip[-1], "conv"):
                found |= unit(block.skip[-1], f"{path}/skip")
    ups = zip(network.decoder.transpconvs, network.decoder.stages, strict=True)
    for number, (up, stage) in enumerate(ups):
        path = f"decoder{len(network.encoder.stages) - 1 - number}"
        found[f"{path}/up/kernel"] = up.weight.permute(2, 3, 4, 0, 1)
        found[f"{path}/up/bias"] = up.bias
        for place, module in enumerate(stage.convs, start=1):
            found |= unit(module, f"{path}/unit{place}")
    head = network.decoder.seg_layers[-1]
    return {
        **found,
        "head/kernel": head.weight.permute(2, 3, 4, 1, 0),
        "head/bias": head.bias,
    }


def main():
    if len(sys.argv) < 2:
        for name, arguments in (("small", SMALL), ("default", DEFAULT), ("large", LARGE)):
            print(name, count(original(1, 2, **arguments)))
        return
    torch.manual_seed(0)
    network = original(2, 3, **SMALL)
    with torch.no_grad():
        for name, each in network.named_parameters():
            if "norm.weight" in name:
                each.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                each.uniform_(-0.5, 0.5)
    x = torch.randn(2, 2, 4, 8, 12, requires_grad=True)
    y = network(x)
    weights = torch.randn(y.shape)
    (y * weights).sum().backward()

    def last(volume):
        return volume.detach().permute(0, 2, 3, 4, 1).numpy()

    arrays = {"x": last(x), "y": last(y), "weights": last(weights), "gradient": last(x.grad)}
    arrays |= {path: each.detach().numpy() for path, each in parameters(network).items()}
    np.savez_compressed(sys.argv[1], **{k: np.ascontiguousarray(v) for k, v in arrays.items()})


if __name__ == "__main__":
    main()
