"""Mergekit files that cannot be followed, and what the refusal says: {what: (file, message)}."""

from __future__ import annotations

L = "merge_method: linear\n"
T = "merge_method: task_arithmetic\nbase_model: base\n"
P = "merge_method: passthrough\n"
M = "models: [{model: fa, parameters: {weight: 0.5}}, {model: fb, parameters: {weight: 0.5}}]\n"
TWO = "models: [{model: fa}, {model: fb}]\n"


def one(parameters: str, *, more: str = "") -> str:
    """A linear merge of two models, the first with some parameters."""
    return (
        f"{L}models: [{{model: fa, parameters: {parameters}}}, {{model: fb, parameters: {{weight: "
        f"0.5}}}}]\n{more}"
    )


REFUSED = {
    "models null": (L + "models:\n", "either `models` or `slices`, got neither"),
    "models and slices": (
        L + M + "slices: [{sources: [{model: a, layer_range: [0, 1]}]}]\n",
        "models and slices",
    ),
    "models a mapping": (L + "models: {model: fa}\n", "models: expected a list"),
    "models of strings": (L + "models: [fa, fb]\n", "the model 'fa'"),
    "slices of strings": (L + "slices: [fa]\n", r"slices\[0\]: expected key: value pairs"),
    "sources missing": (
        L + "slices: [{parameters: {weight: 1}}]\n",
        r"slices\[0\].sources: expected a list, got null",
    ),
    "no layer_range": (
        L + "slices: [{sources: [{model: fa}]}]\n",
        "layer_range: expected .FIRST, STOP., got null",
    ),
    "layer_range of one": (
        P + "slices: [{sources: [{model: fa, layer_range: [4]}]}]\n",
        "expected .FIRST, STOP.",
    ),
    "of three": (
        P + "slices: [{sources: [{model: fa, layer_range: [0, 1, 2]}]}]\n",
        "expected .FIRST, STOP.",
    ),
    "a string": (P + "slices: [{sources: [{model: fa, layer_range: '0-4'}]}]\n", "expected .FIRST, STOP."),
    "floats": (
        P + "slices: [{sources: [{model: fa, layer_range: [0, 2.5]}]}]\n",
        "expected an integer, got 2.5",
    ),
    "words": (
        P + "slices: [{sources: [{model: fa, layer_range: [0, x]}]}]\n",
        "expected an integer, got 'x'",
    ),
    "booleans": (
        P + "slices: [{sources: [{model: fa, layer_range: [false, true]}]}]\n",
        "expected an integer",
    ),
    "to -1": (P + "slices: [{sources: [{model: fa, layer_range: [0, -1]}]}]\n", "holds no layers"),
    "reversed": (P + "slices: [{sources: [{model: fa, layer_range: [3, 1]}]}]\n", "holds no layers"),
    "empty": (P + "slices: [{sources: [{model: fa, layer_range: [2, 2]}]}]\n", "holds no layers"),
    "infinite": (
        P + "slices: [{sources: [{model: fa, layer_range: [0, .inf]}]}]\n",
        "expected an integer, got inf",
    ),
    "two sources": (
        P + "slices: [{sources: [{model: fa, layer_range: [0,2]}, {model: fb, layer_range: [0,2]}]}]\n",
        "passthrough: 2 models, expected 1",
    ),
    "other lengths": (
        L + "slices: [{sources: [{model: fa, layer_range: [0,2]}, {model: fb, layer_range: [0,3]}]}]\n",
        "different lengths",
    ),
    "slices of other models": (
        L + "slices: [{sources: [{model: a, layer_range: [0,2], parameters: {weight: 1}}]}, "
        "{sources: [{model: b, layer_range: [0,2], parameters: {weight: 1}}]}]\n",
        "name other models",
    ),
    "parameters a list": (L + M + "parameters: [normalize]\n", "parameters: expected key: value pairs"),
    "of a model a list": (one("[weight]"), "expected key: value pairs"),
    "weight a word": (one("{weight: half}"), "weight: expected a finite number, got 'half'"),
    "weight a fraction": (one("{weight: 1/3}"), "got '1/3'"),
    "weight a date": (one("{weight: 2024-01-01}"), "datetime.date"),
    "weight infinite": (one("{weight: .inf}"), "expected a finite number"),
    "weight not a number": (one("{weight: .nan}"), "expected a finite number"),
    "weight too large": (one("{weight: 1e999}"), "expected a finite number"),
    "weight null": (one("{weight: }"), "got null"),
    "weight []": (one("{weight: []}"), "expected a number or a list of numbers"),
    "weight [[1]]": (one("{weight: [[1]]}"), "expected a number or a list of numbers"),
    "gradient of words": (one("{weight: [a, b]}"), "got 'a'"),
    "one condition": (
        one("{weight: {filter: mlp, value: 0.3}}"),
        "'weight' is missing for the tensors that no filter",
    ),
    "no value": (one("{weight: [{filter: mlp}, {value: 1}]}"), "has no value"),
    "filter list": (one("{weight: [{filter: [q, k], value: 1}, {value: 1}]}"), "filter: expected text"),
    "filter pattern": (one("{weight: [{filter: 'q*', value: 1}, {value: 1}]}"), "is in no tensor's name"),
    "filter typo": (one("{weight: [{filer: q, value: 1}, {value: 1}]}"), "did you mean 'filter'"),
    "no weight": (L + TWO, "'weight' is missing"),
    "weights cancel": (one("{weight: -0.5}"), "the weights sum to zero"),
    "base without a weight": (L + M + "base_model: base\n", "'base': 'weight' is missing"),
    "twice": (L + M.replace("fb", "fa"), "names a model twice"),
    "normalize under models": (T + M.replace("0.5}", "0.5, normalize: false}"), "'normalize' under a model"),
    "rescale under models": (
        T.replace("task_arithmetic", "dare_linear") + M.replace("0.5}", "0.5, rescale: 0.0}"),
        "'rescale' under a model",
    ),
    "lambda under one": (T + M.replace("0.5}", "0.5, lambda: 3}", 1), "'lambda' under a model"),
    "t under one": (
        "merge_method: slerp\nbase_model: fa\nmodels: [{model: fa}, {model: fb, parameters: {t: 1}}]\n",
        "'t' u",
    ),
    "max_iter under one": (
        "merge_method: karcher\nmodels: [{model: a, parameters: {max_iter: 9}}, {model: b}]\n",
        "under",
    ),
    "weight under the base": (
        T + "models: [{model: base, parameters: {weight: 1}}, {model: fa, parameters: {weight: 1}}]\n",
        "'weight' under base_model",
    ),
    "weight of karcher": ("merge_method: karcher\n" + M, "mergekit does not read it either"),
    "t of linear": (L + M + "parameters: {t: 0.5}\n", "the parameter 't' of linear"),
    "typo in a parameter": (one("{weight: 1, wieght: 2}"), "did you mean 'weight'"),
    "typo in a model": (L + "models: [{model: fa, paramters: {weight: 1}}]\n", "did you mean 'parameters'"),
    "typo at the top": (L + M + "base_modle: x\n", "did you mean 'base_model'"),
    "typo in a slice": (
        L + "slices: [{source: [{model: a, layer_range: [0, 1]}]}]\n",
        "did you mean 'sources'",
    ),
    "typo in a source": (
        P + "slices: [{sources: [{model: a, layer_rnage: [0, 1]}]}]\n",
        "did you mean 'layer_range'",
    ),
    "typo in a reference": (L + "models: [{model: {modle: a, model: b}}]\n", "did you mean 'model'"),
    "typo in a path": (L + "models: [{model: {model: {path: a, revison: b}}}]\n", "did you mean 'revision'"),
    "typo in tokenizer": (L + M + "tokenizer: {sourc: base}\n", "did you mean 'source'"),
    "weight beside parameters": (L + "models: [{model: fa, weight: 1}]\n", "does not know the key 'weight'"),
    "scale of a source": (
        P + "slices: [{sources: [{model: fa, layer_range: [0,4], scale: 0.5}]}]\n",
        "the key 'scale'",
    ),
    "residual_weight": (
        P + "slices: [{residual_weight: 0.3, sources: [{model: a, layer_range: [0,4]}]}]\n",
        "no effect",
    ),
    "a key that is no text": (L + M + "3: x\n", "the key 3 is not text"),
    "slerp of three": (
        "merge_method: slerp\nbase_model: base\n" + TWO + "parameters: {t: 0.5}\n",
        "2 models beside",
    ),
    "slerp without base": (
        "merge_method: slerp\n" + TWO + "parameters: {t: 0.5}\n",
        "slerp without base_model",
    ),
    "t without a rest": (
        "merge_method: slerp\nbase_model: fa\n" + TWO + "parameters: {t: [{filter: mlp, value: 1}]}\n",
        "'t' is",
    ),
    "base outside the slice": (
        "merge_method: slerp\nbase_model: base\nparameters: {t: 0.5}\n"
        "slices: [{sources: [{model: fa, layer_range: [0, 2]}, {model: fb, layer_range: [0, 2]}]}]\n",
        "base_model 'base' is not among the sources",
    ),
    "base of a passthrough slice": (
        P + "slices: [{base_model: b, sources: [{model: a, layer_range: [0, 2]}]}]\n",
        "reads no base",
    ),
    "model_stock of one": (
        "merge_method: model_stock\nbase_model: base\nmodels: [{model: fa}]\n",
        "expected 2 or more",
    ),
    "model {path}": (L + "models: [{model: {path: org/name}}]\n", "names no model"),
    "model a number": (L + "models: [{model: 3}]\n", "the model 3"),
    "model a date": (L + "models: [{model: 2024-01-01}]\n", "the model datetime.date"),
    "model null": (L + "models: [{model: }]\n", "names no model"),
    "two adapters": (L + "models: [{model: a+b+c}]\n", "more than one plus"),
    "two revisions": (L + "models: [{model: a@b@c}]\n", "PATH@REVISION"),
    "a pattern": (L + "models: [{model: 'runs/*'}]\n", "is a pattern"),
    "spaces": (L + "models: [{model: ' fa '}]\n", "spaces around it"),
    "architecture": (
        L + "models: [{model: {model: a, override_architecture: X}}]\n",
        "knows no architectures",
    ),
    "base a list": (T.replace("base_model: base", "base_model: [base]") + M, "base_model: the model"),
    "dtype a list": (L + M + "dtype: [float32]\n", "dtype: expected text"),
    "out_dtype": (L + M + "out_dtype: fp8\n", "dtype 'fp8'"),
    "method a list": ("merge_method: [linear]\n" + M, "no merge method"),
    "union": (L + M + "tokenizer_source: union\n", "built from several"),
    "tokenizer {}": (L + M + "tokenizer: {}\n", "built from several"),
    "tokens": (L + M + "tokenizer: {source: base, tokens: {a: {source: fa}}}\n", "makes no new rows"),
    "both": (
        L + M + "tokenizer: {source: base}\ntokenizer_source: base\n",
        "both tokenizer_source and tokenizer",
    ),
    "another tokenizer": (
        L + M + "base_model: fa\ntokenizer_source: fb\n",
        "the tokenizer of fb with the configuration",
    ),
    "chat_template": (L + M + "chat_template: chatml\n", "chat_template: soupkit writes no chat templates"),
    "modules": (L + "modules: {text: {models: []}}\n", "does not know the key 'modules'"),
    "experts": ("base_model: a\nexperts: [{source_model: b}]\n", "mixture of experts"),
    "multi": (L + M + "---\n" + L + M, "2 YAML documents"),
    "recipe": ("command: merge uniform\nrefs: [a]\n", "a recipe of soupkit"),
    "eps": ("merge_method: multislerp\n" + M + "parameters: {eps: 0.1}\n", "would change the result"),
    "normalize_weights": (
        "merge_method: multislerp\n" + M.replace("0.5", "1") + "parameters: {normalize_weights: 0.0}\n",
        "do not sum to one",
    ),
    "columns": (
        "merge_method: nuslerp\n" + M + "parameters: {nuslerp_flatten: 0.0, nuslerp_row_wise: 1.0}\n",
        "rotates columns",
    ),
    "rescale of ties": (
        "merge_method: ties\nbase_model: b\n" + M + "parameters: {rescale: true}\n",
        "does not rescale",
    ),
    "epsilon": (
        "merge_method: della\nbase_model: b\n" + M + "parameters: {density: 0.5, epsilon: 0.6}\n",
        "density ± epsilon",
    ),
    "boolean gradient": (T + M + "parameters: {normalize: [true, false]}\n", "a gradient of booleans"),
    "boolean 2": (T + M + "parameters: {normalize: 2}\n", "expected true or false"),
    "mask a word": (T + M + "parameters: {int8_mask: perhaps}\n", "expected true or false"),
    "max_iter 2.5": (
        "merge_method: karcher\n" + TWO + "parameters: {max_iter: 2.5}\n",
        "expected an integer",
    ),
    "a filter of a moved layer": (
        P + "slices: [{sources: [{model: a, layer_range: [2, 4], parameters: "
        "{scale: [{filter: layers.3., value: 2}]}}]}]\n",
        "moves layers",
    ),
    "duplicate keys": (L + M + "dtype: float32\ndtype: float16\n", "stands twice"),
    "duplicate parameters": (one("{weight: 1, weight: 2}"), "stands twice"),
    "a long number": (one("{weight: " + "9" * 5000 + "}"), "not valid YAML"),
    "a date that is none": (one("{weight: 2024-99-99}"), "not valid YAML"),
    "an integer of no digits": (one("{weight: !!int ''}"), "not valid YAML"),
    "a set": (one("{weight: !!set {a}}"), "expected a number"),
    "python": (one("{weight: !!python/object/apply:os.system [x]}"), "not valid YAML"),
    "tabs": ("merge_method:\tlinear\n\tmodels: []\n", "not valid YAML"),
    "itself": (L + "models: &a [*a]\n", "refer to itself"),
    "laughs": (
        "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]" for i in range(9)),
        "refer to",
    ),
    "no text": ("", "it is no mapping"),
    "text": ("hello", "it is no mapping"),
    "digits of another script": (one("{weight: '\u0663'}"), "expected a finite number"),
    "wide digits": (one("{weight: \uff10.\uff15}"), "expected a finite number"),
    "layers in another script": (
        P + "slices: [{sources: [{model: fa, layer_range: ['0', '\u0664']}]}]\n",
        "expected an integer",
    ),
    "a million layers": (
        P + "slices: [{sources: [{model: a, layer_range: [0, 1000000], parameters: {scale: [0, 1]}}]}]\n",
        "1000000 layers, at most 10000",
    ),
    "a million layers in slices": (
        P + f"slices: [{', '.join(['{sources: [{model: a, layer_range: [0, 1000]}]}'] * 1000)}]\n",
        "1000000 layers, at most 10000",
    ),
    "a number among conditions": (
        one("{weight: [0.1, {filter: mlp, value: 1}]}"),
        "expected filter and value",
    ),
    "a filter that is yes": (one("{weight: [{filter: on, value: 1}, {value: 2}]}"), "filter: expected text"),
    "conditions in a condition": (
        one("{weight: [{filter: mlp, value: [{filter: q, value: 1}]}]}"),
        "expected a number or a list of numbers",
    ),
    "pairs for parameters": (L + M + "parameters: !!pairs [normalize: false]\n", "expected key: value pairs"),
    "models in order": (L + "models: !!omap [model: fa]\n", "expected model and parameters"),
    "a base that is no": ("merge_method: ties\nbase_model: no\n" + M, "the model False"),
    "normalise": (T + M + "parameters: {normalise: false}\n", "did you mean 'normalize'"),
    "a revision alone": (L + "models: [{model: '@v', parameters: {weight: 1}}]\n", "expected text"),
    "a turned name": (L + 'models: [{model: "a\\u202eb"}]\n', "cannot be printed"),
    "slices in another order": (
        L + "parameters: {weight: 1}\nslices: [{sources: [{model: a, layer_range: [0, 2]}, "
        "{model: b, layer_range: [0, 2]}]}, {sources: [{model: b, layer_range: [2, 4]}, "
        "{model: a, layer_range: [2, 4]}]}]\n",
        "in another order",
    ),
    "a filter of a layer in the middle": (
        P + "slices: [{sources: [{model: a, layer_range: [1, 3], parameters: "
        "{scale: [{filter: s.1, value: 2}]}}]}]\n",
        "moves layers",
    ),
    "a long filter": (
        one("{weight: [{filter: " + "x" * 3000 + ", value: 1}, {value: 1}]}"),
        "is in no tensor's name",
    ),
}
