"""The papers that a model stands on, as BibTeX: only those whose method is in it."""

from collections.abc import Iterable


PAPERS = {
    "lindec": """@inproceedings{lin2024linearly,
  title = {Linearly Decomposing and Recomposing Vision Transformers for Diverse-Scale Models},
  author = {Lin, Shuxia and Zhang, Miaosen and Chen, Ruiming and Yang, Xu and Wang, Qiufeng and Geng, Xin},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2024}
}""",
    "scala": """@inproceedings{zhang2024slicing,
  title = {Slicing Vision Transformer for Flexible Inference},
  author = {Zhang, Yitian and Coskun, Huseyin and Ma, Xu and Wang, Huan and Ma, Ke and Chen, Xi and Hu, Derek Hao
            and Fu, Yun},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2024},
  eprint = {2412.04786},
  archivePrefix = {arXiv}
}""",
    "proteus": """@inproceedings{zhang2025accessing,
  title = {Accessing Vision Foundation Models via {ImageNet-1K}},
  author = {Zhang, Yitian and Ma, Xu and Bai, Yue and Wang, Huan and Fu, Yun},
  booktitle = {International Conference on Learning Representations},
  year = {2025},
  eprint = {2407.10366},
  archivePrefix = {arXiv}
}""",
    "spvit": """@article{he2024pruning,
  title = {Pruning Self-attentions into Convolutional Layers in Single Path},
  author = {He, Haoyu and Liu, Jing and Pan, Zizheng and Cai, Jianfei and Zhang, Jing and Tao, Dacheng
            and Zhuang, Bohan},
  journal = {IEEE Transactions on Pattern Analysis and Machine Intelligence},
  year = {2024},
  doi = {10.1109/TPAMI.2024.3355890},
  eprint = {2111.11802},
  archivePrefix = {arXiv}
}""",
}


def bibtex(papers: Iterable[str]) -> str:
    """Papers by their keys, in a block of code of a Markdown page."""
    return "```bibtex\n" + "\n\n".join(PAPERS[paper] for paper in papers) + "\n```"
