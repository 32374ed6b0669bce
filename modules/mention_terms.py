"""The words of chest radiograph reports that name each of the 14 pathologies.

The patterns meet text in small letters, with single spaces, no hyphens inside words and no mark-up. They are chosen by
reading, not fitted: a term stands here when the description codes the finding by itself, so a bare "opacity" or "low
lung volumes" does not.
"""

# ── Building blocks ──────────────────────────────────────────────────────────────────────────────────────────────────

_DOUBT_WORDS = "may|might|could|possibly|probably|likely|potentially|perhaps|questionably|suspected|borderline|unlikely"
# What may stand between a subject and its predicate; cues inside are read by the module that uses these tables.
_LINK_WORDS = (
    "is|are|was|were|be|been|being|has|have|had|do|does|appears?|appeared|appearing|seems?|looks?|remains?|remained|to"
    "|now|again|also|still|today|both|all|otherwise|therefore|thus|there|the|a|an|of|in|at|on|as|its|it|and|but"
    "|left|right|lateral|posterior|bilateral|somewhat|overall|more|less|well|very|quite|mild|moderate|marked|slight"
    r"|minimal|new|size|stable|unchanged|\w+ly|no longer|not|isn't|aren't|wasn't|never|neither|cannot"
)
_LINK = rf"(?: (?:{_LINK_WORDS}|{_DOUBT_WORDS}))"
_POSITIVE_LINK = (
    rf"(?: (?!(?:not|isn't|aren't|wasn't|never|neither|cannot|no longer)\b)(?:{_LINK_WORDS}|{_DOUBT_WORDS}))"
)
_SIDE = r"(?:(?:the|both|left|right|bilateral|lateral|posterior|either|a|its) )"

_HEART = (
    r"(?:heart|cardiac|cardio ?mediastinal|cardio ?pericardial|cardiovascular)"
    r"(?: (?:size|silhouettes?|shadow|contours?|outline|diameter|borders?|configuration|structures))?"
    r"(?: size)?(?:(?: ?,|,? and| ?/| &)(?: the)?(?: (?:mediastin\w+|hil\w+|aort\w+|great|pulmonary|vascul\w+"
    r"|vessels?"
    r"|contours?|silhouettes?|structures|size|shadow|superior|upper|pleural?|bones|bony|thorax|surfaces"
    r"|lungs?)){1,3}){0,4}"
)
_HEART_NOUN = (
    r"(?:heart(?: size| shadow| silhouette)?|left ventric(?:le|ular)(?: size)?"
    r"|(?:cardiac|cardio ?mediastinal|cardio ?pericardial) (?:silhouette|shadow|contours?|size|outline|diameter)"
    r"|size of the heart)"
)
_ANGLE = (
    r"(?:(?:costo ?phrenic|cardio ?phrenic|cp) (?:angles?|sulc(?:us|i)|recess(?:es)?|gutters?)|costo ?phrenics?|cpas?)"
)
_DIAPHRAGM = r"(?:hemi ?|haemi ?)?diaphragm(?:s|atic)?(?: (?:domes?|contours?|leaflets?))?"
_RATIO = r"(?:cardio ?thoracic (?:ratio|index)|c/?t ratio|ctr)"
_AIRSPACE = r"(?:air ?space|alveolar|acinar)"
_SHADOW = (
    r"(?:opacit(?:y|ies)|opacifications?|shadow(?:s|ing)?|densit(?:y|ies)|disease|process(?:es)?|filling|changes?"
    r"|pattern)"
)

# ── What names each pathology ────────────────────────────────────────────────────────────────────────────────────────

# By its name, a synonym or an abbreviation.
TERMS: dict[str, tuple[str, ...]] = {
    "Atelectasis": (
        r"at[ae]lect\w*|atx\b|atel\b",
        r"collaps(?:e|es|ed|ing)\b",
        r"volume loss|loss of (?:\w+ ){0,2}volume",
    ),
    "Cardiomegaly": (
        r"cardio ?megal\w*",
        r"(?:mild|moderate|severe|marked|gross|no|stable|unchanged|borderline) cm\b",
        r"(?:heart|cardiac \w+) (?:without|with no|shows no|with) (?:\w+ )?enlargement",
        r"(?:cardiac|heart|ventricular|biventricular|cardiac silhouette|cardiac shadow|four chamber"
        r"|multi ?chamber) enlargement",
    ),
    "Effusion": (
        r"(?:pleural|pericardial)(?: or| and| and/or| ?/) (?:pleural|pericardial) eff?usions?",
        r"(?:hydro|ha?emo) ?pneumothora\w+|(?:h[ae]*mo|hydro|chylo|pyo) ?thora(?:x|ces)\b|empyemas?",
        r"eff?usions?\b|effs?\b",
        r"(?:intra ?)?pleural (?:\w+ )?(?:fluid|collections?|liquid)(?: collections?)?",
        r"(?:fluid|liquid|blood) (?:\w+ ){0,3}(?:pleura\w*|fissures?|hemi ?thorax|costo ?phrenic)(?: \w+)?",
        r"(?:loculated|layering|dependent|free|fissural|subpulmonic|tracking) (?:\w+ )?fluid",
        r"fluid (?:is |are )?(?:\w+ ){0,2}(?:layer(?:s|ing)|loculated|tracking|tracks)(?: \w+)?",
        r"fluid (?:\w+ ){0,6}(?:bases?|costo ?phrenic \w+)",
        r"(?:no|without|any|signs? of|evidence of)(?: \w+)? fluid\b(?! (?:overload|level|status|balance))",
    ),
    "Infiltration": (
        r"infilt(?:rat(?:es?|ions?|ive)|s)?\b|infils?\b",
        r"patchy (?:(?!airspace|alveolar|air|atelect|consol)\w+ ){0,2}?(?:opacit(?:y|ies)|opacification"
        r"|shadow(?:s|ing)|densit(?:y|ies))",
    ),
    "Mass": (
        r"mass(?:es)?\b",
        r"tumou?rs?\b|neoplas(?:m|ms|ia)\b|(?:bronchogenic |lung |bronchial )?carcinomas?\b|lung cancers?\b",
        r"space occupying lesions?",
    ),
    "Nodule": (
        r"(?:micro ?)?nodules?\b",
        r"coin(?: shaped)? lesions?|coin shaped \w+",
        r"granulomas?\b|granulomata",
    ),
    "Pneumonia": (
        r"(?:broncho ?|pleuro ?)?pneumon(?:ia|ias|ic|iae)\b|pna\b",
        r"(?:aspiration|infectious|infective|viral|bacterial) pneumonitis",
        r"(?:pulmonary|lung|chest|lower respiratory(?: tract)?) infections?",
    ),
    "Pneumothorax": (
        r"(?:hydro|ha?emo)? ?pneumothora\w+|pneumos?\b|ptx\b|pnx\b",
        r"(?:intra ?)?pleural (?:air|gas)\b|(?:air|gas) (?:with)?in the (?:\w+ )?pleural (?:space|cavity)",
    ),
    "Consolidation": (
        r"consolidat(?:ions?|ive|ed|ing)\b|consols?\b",
        rf"{_AIRSPACE} (?:(?!and\b|or\b|edema|oedema)\w+ )?{_SHADOW}",
    ),
    "Edema": (r"o?edema(?:tous)?\b",),
    "Emphysema": (
        r"emph[yi]sem\w*|emphysematous",
        r"bull(?:ae?|ous)\b|blebs?\b",
    ),
    "Fibrosis": (
        r"fibros[ei]s\b|fibrotic\b|fibro(?:calcific|nodular|reticular|cavitary|calcified)\b",
        r"honey ?comb\w*|traction bronchiectas[ie]s",
        r"scar(?:s|ring|red)?\b",
        r"usual interstitial pneumonia|uip\b|ipf\b",
    ),
    "Pleural Thickening": (
        r"(?:pleur\w+|apical|biapical)(?: \w+)? thicken(?:ing|ed)|pleur(?:a|al)(?: based)?(?: \w+)? (?:plaques?"
        r"|calcifications?|scarring|fibrosis|peel|rind)",
        r"thicken(?:ing|ed) (?:(?:of|in|at|along) )?(?:(?:the|left|right|both|apical|lateral|visceral|parietal"
        r"|basal|bilateral|biapical) ){0,4}pleura[l]?\b",
        rf"pleura{_LINK}{{0,6}} (?:thickened|calcified)\b",
        r"(?:calcified|thickened) (?:\w+ )?pleur(?:a|al)\b(?: plaques?)?|calcified plaques?"
        r"|plaques? (?:\w+ ){0,3}pleura\w*",
        r"pleura\w*(?: ?:|,)?(?: (?!septal|bronchial|peribronchial|wall|fissural|skin"
        r"|cuffing)\w+,?){0,5}? thickening",
        r"(?:bi ?)?apical (?:pleural )?cap(?:s|ping)?\b|pleural caps?\b|fibro ?thorax|pachypleuritis",
    ),
    "Hernia": (
        r"herni(?:a|as|ae|ation|ated|ating)\b",
        r"(?:intra ?thoracic|thoracic) (?:stomach|gastric \w+|bowel|colon)",
    ),
}

# By what is seen. A name in the same sentence says more: "blunted costophrenic angle, possible small effusion".
SIGNS: dict[str, tuple[str, ...]] = {
    "Atelectasis": (
        r"(?:plate|disc|band|disk)(?: ?like|oid)?(?: \w+)? (?:opacit(?:y|ies)|densit(?:y|ies)|bands?|lines?)",
        r"fleischner(?:'s)? lines?",
        r"(?:lung|lobe) (?:is |has )?not (?:fully |completely )?(?:re ?)?expanded"
        r"|incomplete(?:ly)? (?:re ?)?expan(?:sion|ded)",
    ),
    "Cardiomegaly": (
        rf"{_HEART}(?: ?:)?(?: (?:is|are|was|were|which|that|as))?{_LINK}{{0,7}} "
        r"(?:enlarge[d]?|enlarging|increased|large|larger|big|bigger|dilated|globular|prominent|widened"
        r"|borderline)\b",
        r"(?:enlarged|enlarging|large|big|prominent|globular|dilated|increased|widened|wide|boot shaped|borderline)"
        rf" (?:(?:transverse|appearing|appearance of|the|size of|overall|globular) ){{0,3}}{_HEART_NOUN}",
        r"(?:enlargement|prominence|dilat(?:at)?ion|widening|increase) (?:of"
        rf"|in) (?:the )?(?:size of )?(?:the )?(?:overall |transverse )?{_HEART_NOUN}",
        r"increased? cardiac size|cardiac dilat(?:at)?ion",
        rf"{_HEART_NOUN}(?: (?!not\b)\w+){{0,5}}? (?:more than|over|greater than|exceed\w*|above) (?:half"
        rf"|50 ?%)|{_HEART_NOUN} (?:occup\w+|takes up|measures|is)(?: \w+){{0,2}} (?:5[1-9]|[6-9]\d) ?%",
        rf"{_RATIO},?(?: (?!below|less|under|not|normal)\w+){{0,3}}?,? ?(?:above|over|greater|more|>|exceed\w*"
        r"|increased|enlarged|elevated|larger)",
        rf"(?:increased|elevated|enlarged|abnormal) {_RATIO}",
        rf"{_RATIO}[ :=~(]*(?:(?:is|was|of|at|about|approximately|measures|estimated|around|roughly|circa"
        rf"|ca) ){{0,3}}"
        r"(?:0?[.,](?:5[1-9]|[6-9]\d?)|(?:5[1-9]|[6-9]\d) ?%)",
    ),
    "Effusion": (
        r"(?:blunt(?:ing|ed|s)?|oblit\w+|efface\w*|loss|obscur\w+|filling|filled|silhouett\w+) (?:(?:of"
        rf"|in) )?{_SIDE}{{0,4}}{_ANGLE}",
        rf"{_ANGLE}{_LINK}{{0,7}} (?:blunt(?:ed|ing)?|oblit\w+|efface\w*|obscur\w+|filled|lost|indistinct|hazy)\b",
        r"menisc(?:us|al)(?: sign| shaped?)?",
    ),
    "Mass": (
        r"mass like\b",
        r"(?:3\.[1-9]\d?|[4-9](?:\.\d+)?|1\d(?:\.\d+)?)(?: ?(?:x"
        r"|by) ?[\d.]+){0,2} ?cm (?:(?!nodul)\w+ ){0,4}?(?:lesion|opacity|density|shadow)\b",
        r"(?:3[1-9]|[4-9]\d|1\d\d)(?: ?(?:x|by) ?[\d.]+){0,2} ?mm (?:(?!nodul)\w+ ){0,4}?(?:lesion|opacity"
        r"|density|shadow)\b",
        r"cannon ?balls?\b",
    ),
    "Nodule": (
        r"nodul(?:ar|arity|ation)\b",
        r"(?<![\d.])(?:0?\.\d+|[12](?:\.\d+)?|3(?:\.0)?)(?: ?(?:x|by) ?[\d.]+){0,2} ?cm (?:(?!nodul"
        r"|mass)\w+ ){0,4}?(?:lesion|opacity|density|focus)\b",
        r"(?<![\d.])(?:[1-9]|[12]\d|30)(?: ?(?:x|by) ?[\d.]+){0,2} ?mm (?:(?!nodul|mass)\w+ ){0,4}?(?:lesion"
        r"|opacity|density|focus)\b",
        r"sub ?centimet(?:re|er|ric) (?:\w+ ){0,3}(?:lesion|opacity|opacities|density|focus|foci)",
    ),
    "Pneumonia": (
        r"(?:infectious|infective|pneumonic) (?:process(?:es)?|infiltrates?|consolidations?|changes?|focus"
        r"|foci)",
    ),
    "Pneumothorax": (
        r"(?:visceral )?pleural (?:line|edge)s?\b|visceral pleura\b|(?:lung|lobe) edges?\b|deep sulcus(?: sign)?",
    ),
    "Consolidation": (r"(?:air )?bronchograms?",),
    "Edema": (
        r"kerley(?: ?'?s)?(?: [abc]\b)?(?: lines?)?|(?:interlobular |thickened )?septal (?:lines?|thickening)"
        r"|thickened interlobular septa",
        r"(?:bat(?:'?s)? ?wing|butterfly)(?: \w+){0,2}|(?:peri ?bronchial|bronchial wall) cuffing",
        r"fluid overload|volume overload",
        r"(?:pulmonary |vascular |venous |pulmonary vascular |pulmonary venous |perihilar )congestion",
        r"(?:congestive )?(?:heart|cardiac|ventricular) failure|chf\b|cardiac decompensation",
    ),
    "Emphysema": (
        r"(?:hyper ?|over ?)(?:inflat|expan|aerat)\w+",
        rf"(?:flattening|depression) of {_SIDE}{{0,3}}{_DIAPHRAGM}|diaphragm\w* flattening",
        rf"{_DIAPHRAGM}{_LINK}{{0,6}} (?:flat|flattened|depressed)\b|(?:flat|flattened"
        rf"|depressed) {_SIDE}{{0,2}}{_DIAPHRAGM}",
        r"(?:increased|enlarged|expanded|widened) retrosternal (?:clear |air ?)*space|barrel (?:shaped )?chest"
        r"|air trapping",
        r"copd\b|chronic obstructive (?:pulmonary|lung|airways?) disease",
    ),
    "Fibrosis": (r"reticul(?:ar|ation|ations|o ?nodular)\b",),
    "Hernia": (
        r"(?:retro ?cardiac|behind the (?:heart|cardiac \w+))(?: \w+){0,3}? (?:air ?/? ?fluid level|fluid level"
        r"|lucency|gas bubble|air bubble)",
        r"(?:air ?/? ?fluid level|fluid level|gas bubble|air bubble|lucency|stomach bubble"
        r"|gastric bubble)s?(?: \w+){0,4}? (?:retro ?cardiac|behind the (?:heart|cardiac))(?: \w+)?",
        r"(?:stomach|gastric|bowel|colon\w*)(?: \w+){0,4} (?:above the (?:\w+ )?(?:hemi)?diaphragm"
        r"|(?:with)?in(?:to)? the (?:chest|thorax|\w+ hemithorax))",
    ),
}

# Words whose misspellings (one letter wrong, missing, too many, or two swapped) are read as they were meant.
SPELLINGS = frozenset(
    {
        "atelectasis",
        "cardiac",
        "cardiomegaly",
        "collapse",
        "consolidation",
        "consolidations",
        "costophrenic",
        "effusion",
        "effusions",
        "emphysema",
        "emphysematous",
        "evidence",
        "fibrosis",
        "fibrotic",
        "hernia",
        "hiatal",
        "hiatus",
        "hyperinflated",
        "hyperinflation",
        "infiltrate",
        "infiltrates",
        "infiltration",
        "nodular",
        "nodule",
        "nodules",
        "oedema",
        "opacity",
        "pleural",
        "pneumonia",
        "pneumothorax",
        "resolved",
        "thickening",
        "without",
    }
)
# Words one letter from these that mean themselves.
SPELT_RIGHT = frozenset(
    {
        "cardia",
        "collapsed",
        "collapses",
        "consolidating",
        "edema",
        "fibroid",
        "fibroids",
        "fibroses",
        "hernial",
        "hernias",
        "infiltrated",
        "infiltrating",
        "infiltrative",
        "module",
        "modules",
        "nodularity",
        "pleura",
        "pleurae",
        "pneumoniae",
        "pneumonias",
        "pneumonic",
        "resolve",
        "resolves",
    }
)

# Normal descriptions that deny a finding without naming it.
NORMAL: dict[tuple[str, ...], tuple[str, ...]] = {
    ("Cardiomegaly",): (
        rf"{_HEART}(?: ?[:,-])?{_POSITIVE_LINK}{{0,7}} "
        r"(?:normal|unremarkable|wnl|(?:with)?in (?:the )?(?:normal|upper) (?:limits?|range)\w*"
        r"|(?:the )?(?:upper|top)(?: limits?)?(?: of)?(?: the)? normal(?: range)?)\b",
        r"normal (?:(?:in |sized|size of the|appearing|for|the|a) ?){0,3}"
        r"(?:heart|cardiac|cardio ?mediastinal|cardio ?pericardial)\b",
        rf"{_RATIO}(?: (?!above|over|greater|more|not)\w+){{0,3}}? ?(?:below|less than|under|<|normal|within)",
        r"normal " + _RATIO,
        rf"{_RATIO}[ :=~(]*(?:(?:is|was|of|at|about|approximately|measures|estimated|around|roughly|circa"
        rf"|ca) ){{0,3}}"
        r"(?:0?[.,](?:[1-4]\d?|50?)(?!\d)|(?:[2-4]\d|50) ?%)",
    ),
    ("Consolidation", "Infiltration"): (
        r"(?<!left )(?<!right )(?:lungs|lung (?:fields|zones|parenchyma)|both lungs?|cxr|chest(?: x ?ray"
        r"| radiograph| film)?)"
        r"(?: and (?:the )?pleura(?:l spaces?)?)?"
        rf"(?: ?[:,-])?(?:{_POSITIVE_LINK}|,?(?: and)? (?:fully |normally |symmetrically |adequately |well )*"
        r"(?:inflated|expanded|aerated|hyper ?(?:inflated|expanded|aerated)|remaining|and|low in volume)\b){0,7}"
        r",? clear\b(?! of\b|ing|ed)",
        r"clear(?: (?:and|well|expanded|aerated|,)){0,3} (?:lungs|lung fields|chest)\b",
    ),
    ("Effusion",): (
        rf"{_ANGLE}(?: ?[:,-])?(?:{_POSITIVE_LINK}|,? and\b){{0,7}} (?:sharp\w*|clear|preserved|intact|normal"
        r"|maintained|acute|unremarkable|crisp|free|well defined|defined)\b",
        rf"(?:sharp\w*|clear|preserved|intact|normal|crisp|well defined|free) {_SIDE}{{0,2}}{_ANGLE}",
        r"pleural (?:spaces?|cavit(?:y|ies)"
        rf"|recess(?:es)?)(?: and (?:the )?lungs)?(?: ?:)?{_POSITIVE_LINK}{{0,5}} (?:clear|normal|unremarkable"
        r"|dry)\b",
    ),
}

# Descriptions whose own "no" or "absent" is the finding.
FIXED: dict[tuple[str, ...], tuple[str, ...]] = {
    ("Pneumothorax",): (
        r"(?:lung|vascular|broncho ?vascular|pulmonary) markings (?:are |is )?(?:absent|not (?:seen|visible"
        r"|present)|lost|missing)",
        r"(?:absent|absence of|loss of|devoid of|without|no) (?:\w+ )?(?:lung|vascular|broncho ?vascular"
        r"|pulmonary) markings"
        r"(?: (?:beyond|peripheral|lateral|distal|in|at|over)\w*)",
    ),
}

# Words that contain or resemble a term and mean something else; they are blotted out before terms are looked for.
LOOK_ALIKES = (
    r"massive\w*|mass effects?|(?:body|muscle|bone|lean|fat|breast|abdominal|renal|hepatic|liver|adnexal|pelvic|neck"
    r"|axillary|thyroid|chest wall|soft tissue|intra ?cardiac|adrenal) mass(?:es)?\b|mass index|mass of (?:tub"
    r"|wire|cable|lead|cloth|hair|monitor)\w*",
    r"(?:sub ?cutaneous|surgical|soft tissue|mediastinal|interstitial|cutaneous|chest wall|orbital"
    r"|neck)(?: \w+)? emphysema\w*",
    r"emphysema (?:in|of|within) (?:the )?(?:\w+ )?(?:soft tissues?|chest wall|neck|subcutaneous tissues?)",
    r"emphysematous (?:cholecyst|pyel|gastr|cyst)\w*|nipple shadows?|nipples?|(?:pneumonia"
    r"|pneumococcal) (?:vaccin|jab|immuni[sz])\w*",
    r"herni\w+ (?:repair|surgery|mesh|operation)|(?:inguinal|umbilical|ventral|incisional|femoral"
    r"|abdominal(?: wall)?|dis[ck]|brain|spigelian|para ?stomal|cerebral)"
    r" herni\w+|herniat\w+ dis[ck]s?",
    r"(?:peripheral|pedal|ankle|leg|lower (?:limb|extremity)|limb|soft tissue|facial|cerebral|laryngeal"
    r"|sub ?cutaneous"
    r"|chest wall|brain|macular|body wall|bowel wall|mucosal|hand|foot|sacral|pitting|peri ?orbital|orbital"
    r"|vulval|genital|scrotal|bone marrow|marrow) o?edema",
    r"o?edema(?:tous)? (?:of|in) (?:the |both |his |her )*(?:ankles?|legs?|feet|limbs?|lower|soft|chest wall"
    r"|hands?|arms?|face)\w*",
    r"o?edematous (?:\w+ )?(?:ankles?|legs?|feet|limbs?|hands?|arms?|soft tissues?|lower)",
    r"(?<!pleural and )(?<!pleural or )(?<!pleural/)pericardial eff?usions?|(?:joint|knee|shoulder|hip|subdural"
    r"|middle ear|elbow|ankle)"
    r" eff?usions?|eff?usion of the (?:knee|joint|shoulder|hip)",
    r"cystic fibrosis|fibrous dysplasia|(?:retroperitoneal|hepatic|liver|myocardial|renal"
    r"|nephrogenic\w*) (?:\w+ )?fibrosis|myelofibrosis",
    r"scars? (?:from|of|over) (?:\w+ ){0,3}(?:sternotomy|surgery|thoracotomy|operation|skin)|(?:surgical|skin"
    r"|operative|post ?operative|sternotomy|midline|incisional|abdominal|cutaneous) scar\w*",
    r"(?:thyroid|skin|schmorl'?s?|lymph|breast|cutaneous|vocal cord|hepatic|liver|adrenal) nod(?:ul)?\w*"
    r"|nodular (?:thyroid|goit\w+|liver)",
    r"(?:vertebral|compression|patient|circulatory|cardiovascular|trach\w+|bronchial|airway|syncopal"
    r"|femoral head)(?: \w+)?"
    r" collaps\w*|collaps\w+ (?:at|in the|of the|of|on)(?: (?:the|[tl]\d+))? (?:street|home|work|floor"
    r"|vertebra\w*|endplate|t\d+|l\d+)\w*",
    r"bull(?:a|ae)? ?(?:et|dog)\w*",
    r"consolidat\w+ (?:chemo|therapy|radiotherapy)\w*|fracture consolidation|consolidation of (?:the )?fracture",
    r"(?:urinary|viral|wound|line|skin|blood ?stream|sinus) infections?",
    r"(?:fatty|fat|contrast|local|marrow|muscle|muscular|skin|bone) infiltrat\w+",
)
