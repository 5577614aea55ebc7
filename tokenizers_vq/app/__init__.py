"""A page to play with: pictures through tokenizers, their codes, new pictures from priors (`tvq app`, extra `app`).

`models` opens what is named, `looking` and `codes` say what tokenizers make of a picture, `drawing` draws with priors;
none of these needs gradio. `page` shows them.
"""
