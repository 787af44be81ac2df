"""How important a weight is: the catalogue. Sums on the clients, a score on the server.

A score is a `Score` value and a line in `SCORES`; higher = keep. Every statistic is taken in eval
mode at the weights that were sent and leaves the model bit-identical. An *additive* one is a sum
over examples (label tokens, for a language model), so that its federated score equals the score of
the pooled data of the partitions that answered. One that is not (per batch, per client, collected
while tuning) says so in its name or by `Score.additive`.
"""

from __future__ import annotations

from fedprune.options.plugins import table_in
from fedprune.scores.ablation import ASK_ABLATION, ablation
from fedprune.scores.block_influence import ASK_BLOCK_INFLUENCE as ASK_INFLUENCE
from fedprune.scores.block_influence import block_influence
from fedprune.scores.block_similarity import ASK_BLOCK_SIMILARITY as ASK_SIMILARITY
from fedprune.scores.block_similarity import block_similarity
from fedprune.scores.columns import (
    by_input,
    fisher,
    magnitude,
    mean_magnitude,
    mean_of_sums,
    negative_mean,
    random_score,
    ria,
    wanda,
    wanda_by_row,
)
from fedprune.scores.contribution import ASK_CONTRIBUTION, contribution
from fedprune.scores.flap import ASK_FLUCTUATION, flap, mean_outputs
from fedprune.scores.gradient_statistics import (
    ASK_BATCH_SQUARES,
    ASK_CLIENT_SQUARES,
    ASK_GRADIENT,
    ASK_SQUARES,
    ASK_TAYLOR,
    ASK_TAYLOR_SECOND,
)
from fedprune.scores.grasp import ASKS as ASKS_GRASP
from fedprune.scores.grasp import grasp
from fedprune.scores.inputs import absolutes, inputs_ask, nonzeros, products, squares
from fedprune.scores.perturbation import ASK_PERTURBATION, perturbation, standard_error
from fedprune.scores.score import ByBlock, ByTensor, Score
from fedprune.scores.sparsegpt import obs, step
from fedprune.scores.synflow import refuse_inhomogeneous, synflow

SCORES: dict[str, Score] = {
    "taylor": Score(
        "|Σ w·g|: first-order change of the pooled loss if the weight went",
        "Molchanov et al. 2017, arXiv 1611.06440, eq. 7, on single weights, clients summed first",
        ByTensor(mean_magnitude),
        (ASK_TAYLOR,),
    ),
    "taylor_signed": Score(
        "-Σ w·g: the same with its sign; a weight whose removal lowers the loss goes first",
        "Mozer and Smolensky 1989 (skeletonization), on single weights",
        ByTensor(negative_mean),
        (ASK_TAYLOR,),
    ),
    "taylor_second": Score(
        "|Σ_i -w·g_i + ½w²g_i²|: second-order change, with Σ g² of single examples for curvature",
        "LeCun et al. 1990 (OBD), with the empirical Fisher diagonal and the first order kept",
        ByTensor(mean_magnitude),
        (ASK_TAYLOR_SECOND,),
    ),
    "gradient": Score(
        "|Σ g|: size of the pooled gradient",
        "the quantity regrown by Evci et al. 2020 (RigL), arXiv 1911.11134, here to keep",
        ByTensor(mean_magnitude),
        (ASK_GRADIENT,),
    ),
    "second_moment_per_example": Score(
        "Σ_i g_i² over single examples: the diagonal of the empirical Fisher matrix",
        "Liu et al. 2021 (group Fisher), arXiv 2108.00708, eq. 5, on single weights",
        ByTensor(mean_of_sums),
        (ASK_SQUARES,),
    ),
    "second_moment_per_batch": Score(
        "Σ_b n_b·(mean g of batch b)²: depends on how shards are cut into batches",
        "mean of squared step gradients, as frameworks implement PruneFL",
        ByTensor(mean_of_sums),
        (ASK_BATCH_SQUARES,),
        additive=False,
    ),
    "second_moment_per_client": Score(
        "Σ_k n_k·(mean g of client k)²: squared per client, so federated differs from pooled",
        "Jiang et al. 2022 (PruneFL), arXiv 1909.12326: of one pass, or of the steps while tuning",
        ByTensor(mean_of_sums),
        (ASK_CLIENT_SQUARES,),
        additive=False,
    ),
    "fisher": Score(
        "½w²·Σ_i g_i²/N: second-order change at a minimum, where the first order is 0",
        "Theis et al. 2018, arXiv 1801.05787, on single weights",
        ByTensor(fisher),
        (ASK_SQUARES,),
    ),
    "snip": Score(
        "|Σ w·g| at initialisation: only before any training",
        "Lee et al. 2019, arXiv 1810.02340, pooled over clients instead of one batch",
        ByTensor(mean_magnitude),
        (ASK_TAYLOR,),
        at_start=True,
    ),
    "grasp": Score(
        "w·(H·mean g): what |g|² loses if the weight went; only before any training, two questions",
        "Wang et al. 2020, arXiv 2002.07376, sect. 4, H·g of all clients, without temperature",
        grasp,
        ASKS_GRASP,
        at_start=True,
    ),
    "synflow": Score(
        "|w|·dR/d|w|, R the sum of outputs for ones through |w|: no data, asks no client",
        "Tanaka et al. 2020, arXiv 2006.05467, sect. 6; homogeneous networks only",
        synflow,
        refuses=refuse_inhomogeneous,
    ),
    "perturbation": Score(
        "|mean of L(θ with random removals) - L(θ), with minus without w among the removed|",
        "covariance with random masks; Horvitz and Thompson 1952; unbiased before the absolute",
        perturbation,
        (ASK_PERTURBATION,),
        error=standard_error,
    ),
    "contribution": Score(
        "|Σ w·g| over what reads a unit, the gradient of its gate: one number a unit is sent",
        "Molchanov et al. 2019, arXiv 1906.10771, eq. 8; gates: Michel et al. 2019, 1905.10650",
        contribution,
        (ASK_CONTRIBUTION,),
        units=("head", "neuron", "head-neuron", "channel", "expert", "sublayer", "layer"),
    ),
    "ablation": Score(
        "|L(without the unit) - L(θ)|: exact, one unit at a time",
        "Mozer and Smolensky 1989, relevance before its approximation",
        ablation,
        (ASK_ABLATION,),
        units=(
            "weight",
            "row",
            "column",
            "head",
            "neuron",
            "head-neuron",
            "channel",
            "expert",
            "sublayer",
            "layer",
        ),
        most=50_000,
    ),
    "wanda": Score(
        "|w|·sqrt(mean x²) of its input: one number an input channel is sent",
        "Sun et al. 2023, arXiv 2306.11695, eq. 1, with the clients' Σ x² added up",
        ByTensor(wanda),
        (inputs_ask(squares),),
    ),
    "wanda_by_row": Score(
        "rank of Wanda's score in its output row, over the row's weights: rows compete alike",
        "Sun et al. 2023, arXiv 2306.11695, sect. 3, with --scope layer in place of rows",
        ByTensor(wanda_by_row),
        (inputs_ask(squares),),
    ),
    "ria": Score(
        "(|w|/its column's Σ|w| + |w|/its row's)·(mean x²)^¼: relative importance, Wanda's sums",
        "Zhang et al. 2024 (Plug-and-Play, ICLR), eq. 3 and 4, with the clients' Σ x² added up",
        ByTensor(ria),
        (inputs_ask(squares),),
    ),
    "sparsegpt": Score(
        "w²/[H⁻¹]_jj, H = Σ x·xᵀ; removed column by column, the rest of the row makes up for it",
        "Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1; clients' H added up",
        obs,
        (inputs_ask(products, square=True),),
        units=("weight", "n:m"),
        step=step,
    ),
    "flap": Score(
        "var(x)·|W|² of a unit's outputs, compared within its layer; their mean goes into biases",
        "An et al. 2024 (FLAP), arXiv 2312.11983, WIFV and AL-AM; clients' sums added up",
        ByBlock(flap),
        (ASK_FLUCTUATION,),
        units=("head-neuron", "head", "neuron"),
        makes_up=mean_outputs,
    ),
    "movement": Score(
        "-Σ_t w_t·g_t while tuning: keeps what moves away from 0; starts again every round",
        "Sanh et al. 2020, arXiv 2005.07683, without the straight-through mask",
        ByTensor(negative_mean),
        (ASK_TAYLOR,),
        additive=False,
        tuning=True,
    ),
    "activation": Score(
        "mean |x| of its input channel",
        "Molchanov et al. 2017, arXiv 1611.06440, sect. 2.2 (activation), of inputs",
        ByTensor(by_input),
        (inputs_ask(absolutes),),
    ),
    "activity": Score(
        "part of the rows in which its input is not 0: 1 - dead fraction",
        "Hu et al. 2016 (APoZ), arXiv 1607.03250, eq. 1, of inputs",
        ByTensor(by_input),
        (inputs_ask(nonzeros),),
    ),
    "block_influence": Score(
        "mean over tokens of 1 - cos(x_in, x_out) of its block",
        "Men et al. 2024 (ShortGPT), arXiv 2403.03853, eq. 1",
        ByBlock(block_influence),
        (ASK_INFLUENCE,),
        units=("layer",),
    ),
    "block_similarity": Score(
        "1 - the largest CKA of its block's outputs with an earlier block's: a repeated one goes",
        "Kornblith et al. 2019, arXiv 1905.00414, linear CKA; clients' sums of products added up",
        block_similarity,
        (ASK_SIMILARITY,),
        units=("layer",),
    ),
    "magnitude": Score(
        "|w| of the global model: asks no client",
        "Han et al. 2015, arXiv 1506.02626",
        ByTensor(magnitude),
        rescored=False,
    ),
    "random": Score(
        "uniform noise, new each round: asks no client", "the control", random_score, rescored=False
    ),
}


def scores_of(plugin: str) -> dict[str, Score]:
    """Every score by name; a plug-in's come last and may replace a built-in one."""
    return {**SCORES, **table_in(plugin, "SCORES", Score)}
