"""Features of networks that others have trained, and private classifiers on them (Tramèr & Boneh 2021, section 5.2).

    python -m transfer.extract_cifar100 --weights=model_best.pth.tar      # ResNeXt-29 8×64d, trained on CIFAR-100
    python -m transfer.extract_simclr --weights=r50_2x_sk1.pth            # SimCLR v2, ResNet-50 of width 2 with selective kernels
    python -m transfer.extract --backbone=torchvision:resnet18 --weights=default --images=FOLDER
    python -m transfer.transfer_cifar --feature_path=transfer/features/cifar100_resnext --batch_size=2048 --lr=8 --noise_multiplier=3.32

A pre-trained network is one more fixed function of one image. What it was trained on is taken as public: the guarantee covers the
images that features are extracted from, and nobody else.
"""
