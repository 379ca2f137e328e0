"""Plain implementations of the public lambda nets, with their own state-dict keys.

timm's lambda_resnet26t, lambda_resnet26rpt_256 and lambda_resnet50ts, and
LambdaResNet-50 of d-li14/lambda.pytorch, written from tables of their keys and shapes.
They use nothing of the package.
"""

import torch
from torch import nn

from helpers.oracles import randomise

HEADS, DEPTH = 4, 16

# Blocks of each stage; stage and block of the lambda layers; context size, or for
# global relative positions the side of each layer's map; activation.
TIMM = {
    '26t': ((2, 2, 2, 2), ((2, 1), (3, 0), (3, 1)), 9, nn.ReLU),
    '26rpt': ((2, 2, 2, 2), ((2, 1), (3, 0), (3, 1)), (16, 16, 8), nn.ReLU),
    '50ts': ((3, 4, 6, 3), ((1, 3), (2, 1), (2, 3), (2, 5), (3, 1)), 9, nn.SiLU),
}


class Lambda(nn.Module):
    """The common parts of both projects' lambda layers; the width stays."""

    def __init__(self, width, qkv_name):
        super().__init__()
        self.qkv_name, self.value_depth = qkv_name, width // HEADS
        self.rows = (HEADS * DEPTH, DEPTH, self.value_depth)
        self.add_module(qkv_name, nn.Conv2d(width, sum(self.rows), 1, bias=False))
        self.norm_q = nn.BatchNorm2d(self.rows[0])
        self.norm_v = nn.BatchNorm2d(self.rows[2])

    def forward(self, x):
        q, k, v = getattr(self, self.qkv_name)(x).split(self.rows, dim=1)
        v = self.norm_v(v)
        q = self.norm_q(q).unflatten(1, (HEADS, DEPTH))
        content = torch.einsum(
            'bkm,bvm->bkv', k.flatten(2).softmax(-1), v.flatten(2))
        # (B, k, v, H, W): one lambda for each position
        lambdas = content[..., None, None] + self.positions(v)
        return torch.einsum('bhkyx,bkvyx->bhvyx', q, lambdas).flatten(1, 2)


class TimmLambda(Lambda):
    """A convolution over (H, W, v), or a table of relative positions."""

    def __init__(self, width, context=None, side=None):
        super().__init__(width, 'qkv')
        self.used_the_table = False
        if side is None:
            self.pos_emb = None
            self.conv_lambda = nn.Conv3d(1, DEPTH, (context, context, 1),
                                         padding=(context // 2, context // 2, 0))
        else:
            self.pos_emb = nn.Parameter(torch.zeros(2 * side - 1, 2 * side - 1, DEPTH))

    def positions(self, v):
        if self.pos_emb is None:
            return self.conv_lambda(v.permute(0, 2, 3, 1)[:, None]).permute(
                0, 1, 4, 2, 3)
        batch, values, height, width = v.shape
        sides = torch.Size([2 * height - 1, 2 * width - 1])
        self.used_the_table = sides == self.pos_emb.shape[:2]
        if not self.used_the_table:  # the table is the kernel of a convolution
            kernel = self.pos_emb.permute(2, 0, 1)[:, None]
            maps = nn.functional.conv2d(
                v.flatten(0, 1)[:, None], kernel,
                padding=tuple(side // 2 for side in kernel.shape[2:]))
            return maps.view(batch, values, DEPTH, height, width).transpose(1, 2)
        # the offset of each context position to each query, from 0
        rows = torch.arange(height) - torch.arange(height)[:, None] + height - 1
        columns = torch.arange(width) - torch.arange(width)[:, None] + width - 1
        table = self.pos_emb[rows[:, None, :, None], columns[None, :, None]]
        return torch.einsum('yxijk,bvij->bkvyx', table, v)


class DLi14Lambda(Lambda):
    """A convolution over (v, H, W); the pooling counts the zeros outside."""

    def __init__(self, width, stride):
        super().__init__(width, 'conv_qkv')
        self.lambda_conv = nn.Conv3d(1, DEPTH, (1, 23, 23), padding=(0, 11, 11))
        self.pool = nn.AvgPool2d(
            3, 2, 1, count_include_pad=True) if stride == 2 else nn.Identity()

    def positions(self, v):
        return self.lambda_conv(v[:, None])

    def forward(self, x):
        return self.pool(super().forward(x))


class Unit(nn.Sequential):
    """``conv``, ``bn`` and an activation."""

    def __init__(self, width, out, kernel, stride=1, act=nn.Identity):
        super().__init__()
        self.conv = nn.Conv2d(width, out, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out)
        self.act = act()


class TimmBlock(nn.Module):

    def __init__(self, width, inner, stride, act, lambda_layer, first):
        super().__init__()
        self.conv1_1x1 = Unit(width, inner, 1, act=act)
        if lambda_layer is None:
            self.conv2_kxk = Unit(inner, inner, 3, stride, act)
        else:
            self.self_attn = lambda_layer
            self.pool = nn.AvgPool2d(
                2, 2, ceil_mode=True) if stride == 2 else nn.Identity()
            self.post_attn = nn.BatchNorm2d(inner)
        self.conv3_1x1 = Unit(inner, 4 * inner, 1)
        self.shortcut = Unit(width, 4 * inner, 1, stride) if first else nn.Identity()
        self.act = act()

    def forward(self, x):
        out = self.conv1_1x1(x)
        if hasattr(self, 'self_attn'):
            out = self.act(self.post_attn(self.pool(self.self_attn(out))))
        else:
            out = self.conv2_kxk(out)
        return self.act(self.conv3_1x1(out) + self.shortcut(x))


def stages_of(blocks, make):
    """Build stages of blocks by ``make(stage, block, width, inner, stride)``."""
    width = 64
    for i, count in enumerate(blocks):
        stage, inner = nn.Sequential(), 64 * 2**i
        for j in range(count):
            stage.append(make(i, j, width, inner, 2 if i > 0 and j == 0 else 1))
            width = 4 * inner
        yield stage


class TimmNet(nn.Module):
    """Return the maps of the four stages."""

    def __init__(self, arch):
        super().__init__()
        blocks, places, context, act = TIMM[arch]
        self.stem = nn.Sequential()
        self.stem.conv1 = Unit(3, 24, 3, 2, act)
        self.stem.conv2 = Unit(24, 32, 3, 1, act)
        self.stem.conv3 = Unit(32, 64, 3, 1, act)
        self.stem.pool = nn.MaxPool2d(3, 2, 1)

        def make(i, j, width, inner, stride):
            layer = None
            if (i, j) in places:
                layer = TimmLambda(inner, context) if context == 9 else TimmLambda(
                    inner, side=context[places.index((i, j))])
            return TimmBlock(width, inner, stride, act, layer, first=j == 0)

        self.stages = nn.ModuleList(stages_of(blocks, make))
        self.head = nn.Module()
        self.head.fc = nn.Linear(2048, 10)

    def forward(self, x):
        x, maps = self.stem(x), []
        for stage in self.stages:
            maps.append(x := stage(x))
        return maps


class DLi14Block(nn.Module):

    def __init__(self, width, inner, stride, first):
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = DLi14Lambda(inner, stride)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, 4 * inner, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * inner)
        self.downsample = nn.Sequential(
            nn.Conv2d(width, 4 * inner, 1, stride, bias=False),
            nn.BatchNorm2d(4 * inner)) if first else None

    def forward(self, x):
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out)).relu()
        out = self.bn3(self.conv3(out))
        return (out + (self.downsample or nn.Identity())(x)).relu()


class DLi14Net(nn.Module):
    """Return the maps of the four stages; every block has a lambda layer."""

    def __init__(self, blocks=(3, 4, 6, 3)):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages_of(
            blocks, lambda i, j, *args: DLi14Block(*args, first=j == 0))
        self.fc = nn.Linear(2048, 1000)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps.append(x := stage(x))
        return maps


def like_trained(net, size, seed=0):
    """Draw all weights, and give the norms statistics that fit approximately."""
    generator = torch.Generator().manual_seed(seed)

    def rand(like, low, high):
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    randomise(net, seed)
    with torch.no_grad():
        for norm in norms:
            norm.weight.copy_(rand(norm.weight, .5, 1.5))
            norm.bias.copy_(rand(norm.bias, -.5, .5))
            norm.momentum = 1.  # take the statistics of one batch
        net.train()
        net(torch.randn(2, 3, *size, generator=generator))
        for norm in norms:
            spread = norm.running_var.sqrt()
            norm.running_mean += spread * rand(spread, -.2, .2)
            # Only larger variances: lambda layers multiply their inputs, and larger
            # values would grow from layer to layer.
            norm.running_var *= rand(spread, 1., 1.6)
            norm.num_batches_tracked.fill_(7)
    return net.eval()
