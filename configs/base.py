"""Every field of a config, with its default, unit and meaning.

Other configs call ``get_config`` and change what they need; the command line changes the
rest (``--config.model.num_heads=8``). A field that is not named here is refused.
A ``placeholder`` is a field that may stay None.
"""

from ml_collections import ConfigDict, config_dict

# The grammar's sizes are shared by the configs that train on it.
GRAMMAR_LENGTH = 64


def model() -> ConfigDict:
    """The network. ``model.config.ModelConfig`` validates these fields."""
    return ConfigDict(
        dict(
            # Sizes.
            embed_dim=128,  # D, width of the residual stream
            num_layers=4,  # L, blocks
            num_heads=4,  # H, query heads a block
            num_kv_heads=config_dict.placeholder(int),  # G, key/value heads; None: one a query head
            head_dim=config_dict.placeholder(int),  # K, query/key width; None: D / H
            value_dim=config_dict.placeholder(int),  # R, rank of a head's value map; None: head_dim
            mlp_dim=config_dict.placeholder(int),  # F, width of the MLP; None: 4 embed_dim
            vocab_size=config_dict.placeholder(int),  # V, true size; None: the tokenizer's
            max_length=config_dict.placeholder(int),  # longest sequence, tokens; None: `length`
            # Attention.
            attention="multihead",  # the variant: "multihead" or "module:Class"
            attention_backend="auto",  # who computes the pattern: "dense" (the whole of it),
            #                    "pieces" (a few that stay in a CPU's cache), "blockwise" (memory
            #                    grows with the length, not with its square), "splash" (a TPU's
            #                    kernel), "cudnn" (a GPU's) or "auto" (by device and shape)
            value_map="factored",  # "factored" (value_down, value_up) or "full" (one D x D a head)
            positions="rotary",  # "learned", "rotary" or "none"
            rotary_base=10_000.0,  # wavelength base of rotary positions
            window=(None,),  # tokens a query sees, itself included; one entry a layer, repeated;
            #                  None: all before it. (None, 256) alternates dense and local layers
            query_key_norm=False,  # RMSNorm with a gain on each head's queries and keys
            logit_cap=config_dict.placeholder(float),  # attention logits become cap tanh(x / cap)
            # Around it.
            norm="rmsnorm",  # "layernorm" or "rmsnorm"
            norm_epsilon=1e-5,  # added to the variance
            mlp="gelu_tanh",  # "gelu_tanh", "gelu_erf", "swiglu", "none" or "module:Class"
            parallel_blocks=False,  # attention and MLP read the same normed residual, one sum
            biases=False,  # biases on queries, keys, values, updates and the MLP (and LayerNorm)
            tie_embeddings=False,  # the unembedding is the embedding transposed
            dropout=0.0,  # probability, on the embedding, attention's and the MLP's updates
            # How it is computed.
            scan_layers=config_dict.placeholder(bool),  # scan over the blocks (compile time free
            #                    of depth) or unroll them; None: unrolled up to 12 layers on a CPU
            remat="none",  # what the backward pass recomputes: "none", "block" (all but a block's
            #                input), "offload" (the same, the input kept in the host's memory),
            #                "matmuls" (nearly nothing: keeps the results of matrix products)
            dtype="float32",  # operands of matrix products and activations: "float32" or "bfloat16"
            param_dtype="float32",  # parameters, and so the optimizer's state
            accumulation_dtype="float32",  # sums inside matrix products, softmax and norms
            reduce_dtype=config_dict.placeholder(str),  # sums of activations over the mesh, such as
            #                that over heads; None: dtype
            gradient_reduce_dtype=config_dict.placeholder(str),  # sums of gradients over the mesh;
            #                None: accumulation_dtype
        )
    )


def data() -> ConfigDict:
    """What is read, and how it becomes tokens."""
    return ConfigDict(
        dict(
            source="grammar",  # "grammar", "files", "kjv" or "repeats" (random repeated tokens)
            path="",  # "files": a path, a glob, or several with commas between; UTF-8
            documents=20_000,  # "grammar": documents to generate for training
            validation_documents=1_000,  # "grammar": documents held out
            grammar_seed=0,  # "grammar": seed of the generator
            periods=(4, 16),  # "repeats": shortest and longest period, tokens
            tokenizer="word",  # "word", "char", "byte", "bpe" or the path of a tokenizer.json
            tokenizer_vocab_size=4096,  # "bpe": tokens to learn, the byte values included
            validation=0.1,  # "files", "kjv": the fraction held out
            held_out="documents",  # which: whole "documents", or the "tail" of the text
            rows="packed",  # "packed": documents do not see each other; "stream": one long text
            cache_dir="",  # where token arrays are kept; "": the user's cache directory
            prefetch=8,  # batches made ahead by a thread
        )
    )


def optim() -> ConfigDict:
    """The optimizer. Numbers are arguments of the compiled step, all but ``accumulate``."""
    return ConfigDict(
        dict(
            name="adamw",  # "adamw", "lion", "adafactor", "muon" or "module:function" of your own:
            #                function(numbers, declarations) returns the optax transformation that
            #                stands between the clip and the weight decay (train/optimizer.py)
            learning_rate=1e-3,  # peak
            schedule="cosine",  # "cosine", "linear", "warmup_stable_decay" or "constant"
            warmup_steps=100,  # steps of linear warm-up from 0
            final_fraction=0.1,  # of the peak, at the last step (not for "constant")
            decay_fraction=0.2,  # of all steps, the decay of "warmup_stable_decay"
            weight_decay=0.1,  # a step subtracts learning_rate * weight_decay * matrix; norms and
            #                    biases never decay
            multipliers=(),  # of (pattern, rate, decay): factors on the learning rate and on the
            #                weight decay of the parameters whose names match, all that do, such
            #                as (("*.attention.*", 0.5, 1.0), ("embedding", 1.0, 0.0))
            b1=0.9,  # decay of the first moment (not of "adafactor")
            b2=0.95,  # decay of the second moment (not of "adafactor", which has its own)
            eps=1e-8,  # added to the root of the second moment ("adamw", and "muon" for the rest)
            clip=1.0,  # largest global norm of the gradient; 0: no clipping
            muon_learning_rate=0.02,  # "muon": peak for the matrices, the rest takes learning_rate
            muon_momentum=0.95,  # "muon": decay of the momentum
            z_loss=0.0,  # weight of (log of the sum of exp logits)^2 in the loss
            ema=0.0,  # decay of the moving average of the parameters, in float32; after n steps at
            #                most (1 + n) / (10 + n), so that the first ones fade; 0: no average
            master_weights=False,  # keep float32 weights behind parameters of a narrower dtype,
            #                which are rounded from them; moments are then float32 too
            accumulate=1,  # microbatches that a batch is cut into
        )
    )


def get_config() -> ConfigDict:
    """Returns the config that names every field."""
    return ConfigDict(
        dict(
            seed=0,  # of parameters, batches and dropout
            steps=1_000,  # optimizer steps in the run
            batch_size=32,  # sequences a step, over all devices
            length=GRAMMAR_LENGTH,  # T, tokens of a sequence
            loss="cross_entropy",  # what is minimised; "module:function" is one of your own
            loss_chunk=config_dict.placeholder(int),  # tokens whose logits a device holds at once;
            #                    None: as many as 64 MB hold on a CPU, 256 MB elsewhere
            steps_per_call=1,  # optimizer steps in one call of the compiled function
            host_devices=config_dict.placeholder(int),  # forced host devices of a CPU, for the
            #                    mesh; None: one, or what XLA_FLAGS say
            model=model(),
            data=data(),
            optim=optim(),
            mesh=dict(
                data=1,  # replicas
                fsdp=-1,  # shards of parameters and batch
                heads=1,  # shards of heads, MLP width and vocabulary
                context=1,  # shards of the sequence; one size of the four may be -1: what is left
                residual="replicated",  # the residual stream between blocks, over `heads`:
                #                "replicated" (each sum over heads is an all-reduce) or "sharded" by
                #                tokens (a reduce-scatter after, an all-gather before)
                context_attention="auto",  # how attention meets a sequence that `context` shards:
                #                "all_to_all" (exchanged for heads, where they divide), "ring"
                #                (keys go round the devices) or "auto" (what sends less)
            ),
            checkpoint=dict(
                every=500,  # steps between saves; the last step is always saved; 0: only the last
                minutes=0.0,  # also save when the save before began so long ago; 0: by steps alone
                keep=2,  # newest steps kept
                keep_every=0,  # also keep each step that this divides; 0: none
                restore_from="",  # parameters to start from: a run, a step or a saved model. They
                #                are made to fit a model that differs: other positions, tokens,
                #                key/value heads, layers, value maps, dtype (model/surgery)
                restore_only=(),  # patterns of the parameters to take, such as ("*.attention.*",);
                #                the others are drawn; (): all that were saved
                restore_layers=config_dict.placeholder(int),  # layers to take at most, from the
                #                first on; None: as many as both have
                restore_ema=False,  # take the average of the parameters (optim.ema) instead
            ),
            accidents=dict(  # steps whose loss, gradient or new state is not finite, and spikes
                policy="stop",  # what follows: "stop" (nothing is saved from there on), "skip" (the
                #                step changes nothing but its number, and its batch is passed over;
                #                a device then holds state before and after an update at once) or
                #                "rollback" (back to the newest step saved before, and on from there
                #                without the bad batch and those before it since then)
                spike=0.0,  # a loss is a spike from so many standard deviations above the mean of
                #                those of the last `window` good steps, such as 6; 0: none is
                gradient_spike=0.0,  # the same of the gradient's norm
                window=128,  # good steps that spikes are measured by, and before which none is; and
                #                the steps in which `limit` accidents are too many
                skip_before=config_dict.placeholder(int),  # "rollback": batches before the bad one
                #                that are left out with it; None: all since the saved step
                skip_after=0,  # "rollback": batches after the bad one that are left out with it
                limit=10,  # accidents among `window` steps that a run survives; one more ends it
            ),
            log=dict(
                every=20,  # steps between rows of metrics.jsonl
                eval_every=500,  # steps between evaluations; 0: only the last
                eval_batches=20,  # batches in an evaluation during the run; 0: all
                tensorboard=True,  # also write TensorBoard event files
                profile=(),  # first and last step of which a trace is written to workdir/profile,
                #                for XProf and Perfetto, as (100, 102); (): none
            ),
            sample=dict(  # what `python -m train.sample` does unless its flags say otherwise
                prompts=(),  # texts to continue; none: the start of a document
                tokens=100,  # new tokens of each
                temperature=0.8,  # divides the logits; 0: the likeliest token
            ),
        )
    )
