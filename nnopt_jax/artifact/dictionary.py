"""Text that descriptions of models are made of: `deflate` refers to it instead of repeating it.

Every file that was ever written needs it as it is: a change of one character is a new version of
the format.
"""

from __future__ import annotations

_WORDS = (
    '"complex64","float64","int64","uint32","int4","uint16",0],"int16",0],"bool",0],"int32",0],'
    '"opt_state":{"step":{"ema":{"weight":["running_mean":["running_var":["mean":["var":["query":{'
    '"key":{"value":{"out":{"q_proj":{"k_proj":{"v_proj":{"o_proj":{"mlp":{"attention":{"encoder":{'
    '"decoder":{"blocks":{"layers_0":{"lora_a":["lora_b":["Embed_0":{"embedding":["LayerNorm_0":{'
    '"BatchNorm_0":{"batch_stats":{"linear1":{"linear2":{"Conv_0":{"Conv_1":{"metadata":{"same":[['
    '"apart":[0,"Masked",null,"select","straight_through","applied","rows",["uint8",0]],'
    '["Sum",["Factored","bfloat16",["bfloat16",0,0],["float16",0,0]]],["list",["tuple",'
    '["Quantized",-8,0,"float32",["Bits",0,-8,0,0],["float32",0,0],null,null],'
    '["Quantized",-127,0,"float32",["int8",0,0],["float32",0,0],null,null],'
    '"scale":["float32",0],"kernel":["float32",0,0,0,0],"bias":["float32",0]},'
    '["Sparse",[0,0],["float32",0],["Bits",0,0,0,0]]'
)
_LAYERS = ("Dense_0", "Dense_1", "Dense_2", "dense0", "conv1", "conv2", "fc1", "fc2", "fc3")
_SHARED = '["Codebook","float32",["Bits",0,0],["float32",0],null]'


def text() -> bytes:
    """The text; what is likely to be needed lies last.

    Example:
        >>> import zlib
        >>> f"{zlib.crc32(text()):08x}"
        'dc615bcd'
    """
    bias = f'{{"bias":["Sparse",[0],{_SHARED},true],'
    plain = f'{{"bias":{_SHARED},'
    image = f'"kernel":["Sparse",[0,0,0,0],{_SHARED},[0,0]]}},'
    matrix = f'"kernel":["Sparse",[0,0],{_SHARED},[0,0]]}},'
    layers = [
        f'"{name}":{plain if number % 3 == 0 else bias}{image if "conv" in name else matrix}'
        for number, name in enumerate(_LAYERS)
    ]
    return (_WORDS + '[{"params":{' + "".join(layers)[:-1] + "}}]").encode()
