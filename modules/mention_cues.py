"""The words of chest radiograph reports that deny a finding, doubt it or set it aside, and that end their reach.

The patterns meet text as those of `modules/mention_terms.py` do. Chosen by reading, not fitted.
"""

import re

# ── Cues ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

_SEEN = (
    r"(?:seen|identified|noted|present|evident|visible|visuali[sz]ed|demonstrated|detected|appreciated|observed"
    r"|found|apparent|shown"
    r"|recogni[sz]ed|depicted|discernible|noticed|reported|recorded|made out|confirmed|suspected|there"
    r"|detectable|identifiable|demonstrable|revealed|developed|appeared|in evidence|an? (?:\w+ )?(?:feature"
    r"|finding))"
)
_CHANGE = (
    r"(?:change[sd]?|changing|increase[sd]?|increasing|decrease[sd]?|worse(?:n(?:ed|ing)?)?|improve(?:d|ment)"
    r"|improving|progress(?:ed|ion)?|enlarg(?:ement|ing)(?= (?:of|in) (?:the |this )?(?!heart|cardiac|cardio"
    r"|left ventric|the))|larger|smaller"
    r"|difference|different|growth|grown|alter(?:ed|ation)|expansion|deteriorat\w+|regress\w+|reduc\w+"
    r"|resol(?:ved|ution|ving)|clear(?:ed|ing)|better|diminish\w*|disappeared|variation)"
)
_ADVERBS = (
    r"(?:(?:significant(?:ly)?|interval|appreciabl[ey]|substantial(?:ly)?|definite(?:ly)?|obvious|convincing"
    r"|major|marked(?:ly)?|relevant|material(?:ly)?|evidence of|real|great(?:ly)?|much|any|further|yet|been|"
    r"completely|fully|entirely|considerabl[ey]|radiographic(?:ally)?|serial|discernible|noticeabl[ey]"
    r"|meaningful(?:ly)?|significantly|totally|sign of|signs of|in size|overall|clear) )"
)
_STUDY = (
    r"(?:films?|stud(?:y|ies)|exam\w*|radiographs?|x ?rays?|cxr|ct|imaging|images?|scans?|reports?|ones?|comparison|day"
    r"|priors?)"
)

CUES: dict[str, tuple[str, ...]] = {
    # Begin like a denial and deny nothing.
    "pseudo": (
        rf"(?:no|not|without|n't|never) {_ADVERBS}{{0,4}}{_CHANGE}",
        r"(?:not|n't) (?:only|just|merely|simply|solely)|no doubt|not to mention|without doubt|undoubtedly",
        rf"(?:(?:is|are|was|were) )?(?:not|n't) (?:\w+ )?{_SEEN} (?:(?:on|in|at) )?(?:(?:the|any) )?"
        rf"(?:prior|previous|before|earlier|last|old|yesterday)(?:ly)?(?: {_STUDY})?",
        rf"(?:not|n't) previously (?:\w+ )?{_SEEN}",
        r"no (?:prior|previous|comparison|earlier|old)(?: \w+)? " + _STUDY,
        r"no further (?:follow ?up|imaging|action|evaluation)",
        r"(?:un|not )changed(?: from)?(?: the)? (?:prior|previous)|non ?specific|non(?= (?!enlarged|dilated)\w)",
        r"(?:clear|absent|normal) (?:demarcation|evidence)",
        r"not (?:as )?(?:calcified|loculated|large|tension|under tension)",
        r"nearly resolved|almost (?:completely )?resolved|(?:partial(?:ly)?|incomplete(?:ly)?"
        r"|near(?:ly)? complete(?:ly)?|nearly|mostly|largely) (?:interval )?(?:resol(?:ved|ution)|clear(?:ed"
        r"|ing))(?: of)?",
    ),
    # History, the question of the exam, a recommendation: nothing about this film.
    "aside": (
        r"(?:(?:no|known|with|family|clinical|past|prior|medical|a|remote|strong|smoking) ){0,4}(?:history|hx"
        r"|h/o|pmhx?|ho) (?:is |was )?(?:of|for|includes?|with|significant for|notable for|suggest\w*)?",
        r"(?:cannot|can't|could not|not) (?:be )?(?:used|relied) (?:to|for)",
        r"(?:please |kindly |need to |in order to |to (?:further |better )?)(?:exclude|rule out|r/?o|evaluate"
        r"|assess|confirm|ensure|document|look|check|monitor|characteri[sz]e|follow|verify|clarify"
        r"|differentiate|reassess|detect|determine)\b(?: (?:for|of|the|any|if|whether))*",
        r"(?:rule|ruling) out|r/o\b|exclude\b|(?:evaluate|assess|evaluat(?:ion|ed)|assess(?:ment|ed)|looking"
        r"|look|check|checked|screen(?:ing|ed)?|surveillance|investigat\w+|work ?up|query) (?:for"
        r"|of)(?! the (?:lungs?|bas\w+|\w+ bas\w+|mediastin\w+))",
        r"(?:is |are |was |were |be )?(?:recommend\w*|advis(?:e|ed|able)|suggest(?:ed)?(?= (?:a |an "
        r"|that )?(?:\w+ )?(?:ct|follow|repeat|further|clinical|correlat\w+|chest|radiograph\w*|imaging|pa "
        r"|lateral)))",
        r"(?:follow(?:ed|ing)? ?up|followup|monitoring|re ?evaluation|reassessment|f/u"
        r"|repeat(?: \w+){0,3}) (?:of|for|to|until)",
        r"follow(?= the\b)|correlat(?:e|ion)(?: \w+)? (?:for|with)|(?:clinical|clinically) (?:concern|suspicion"
        r"|suspected|query|question|diagnosis|diagnosed)(?: (?:for|of))?",
        r"(?:present(?:s|ed|ing)|admitted|treated|treatment|therapy|diagnosed|hospitali[sz]ed|referred|referral"
        r"|antibiotics|operated|admission) (?:with|for|as|of)",
        r"(?:year old|yo|y/o|patient|pt|woman|man|male|female|lady|gentleman|smoker|boy|girl|case)(?: \w+)? with",
        r"status post|s/p|post(?= \w+(?:ectomy|plasty|tomy))|(?:drainage|aspiration|removal|resection|excision"
        r"|evacuation|biopsy|ablation) of"
        r"(?! (?:the |an? )?(?:\w+ ){0,2}(?:drain|tube|catheter|line|pacemaker|device|wire)s?\b)",
        r"risk (?:of|for|factors? for)|predispos\w+(?: to)?|suscept\w+ to|prevent(?:ion|s|ing)?(?: of)?"
        r"|in case of|protocol for",
        r"(?:^|(?<=[ ,]))if(?: there (?:is|are))?|should there be|were there|in the event of"
        r"|whether(?: or not)?(?: there is)?",
        rf"(?:prior|previous|earlier|last|old) (?:\w+ ){{0,2}}{_STUDY}(?:,? (?!is\b"
        rf"|are\b)\w+){{0,3}}? (?:there was|there were|showed|showing|shows|demonstrated|revealed|with|reported"
        r"|described|had)",
        r"(?:mother|father|brother|sister|sibling|family)(?: member)?s?(?: \w+)?(?: had| has| with)?",
        r"(?:cxr|x ?rays?|films?|study|exam\w*|imaging|radiographs?) for|known (?:to have|for|case of)"
        r"|for (?:the )?exclusion of",
        r"in the past|past episodes? of|previous episodes? of|prior episodes? of",
    ),
    # Sets aside the next finding alone, unless the clause says how it is now.
    "former": (
        r"(?:previous|prior|past|former|earlier)(?:ly)?(?: (?:seen|noted|described|identified|reported|known"
        rf"|demonstrated|visuali[sz]ed))?(?= (?!{_STUDY}\b)[a-z])",
        r"(?:old|remote|healed|childhood)(?= (?:empyema|pneumonia|infection|ha?emothorax|pneumothorax|effusion))",
    ),
    # A finding of an earlier film: set aside unless the clause says how it is now.
    "earlier": (
        r"(?:on|per|from|in) (?:the )?(?:referral|request)(?: form| note| letter)?",
        rf"(?:was|were|had been) (?:(?!not\b)\w+ )?{_SEEN} (?:on (?:the )?)?(?:prior|previous|before|earlier"
        rf"|last)\w*(?: {_STUDY})?|had been|(?:was|were) (?:diagnosed|treated)",
        rf"{_SEEN} (?:on|in) (?:the )?(?:prior|previous|earlier|last|old)(?: {_STUDY})?",
        r"last (?:year|month|week|spring|summer|autumn|winter)|(?:years?|months?|weeks?) ago|in (?:19|20)\d\d"
        r"|in childhood|as a child|previously",
    ),
    "doubt": (
        r"(?:cannot|can not|can't|cant|could not|couldn't|does not|doesn't|do not|not|unable to|difficult to"
        r"|hard to|impossible to|not possible to|without) "
        r"(?:be )?(?:\w+ly )?(?:exclud(?:e|ed|ing)|rul(?:e|ed|ing) out|ruled out|r/o|differentiated?"
        r"|distinguish(?:ed)?)(?: from)?",
        r"(?:is|are|remains?|still|yet)? ?(?:to be|should be|must be|needs? to be|has to be"
        r"|have to be) (?:\w+ )?(?:excluded|ruled out|considered|suspected)",
        r"differential(?: (?:diagnos[ie]s|considerations?|possibilit\w+))?(?: (?:would |may "
        r"|could )?(?:includes?|including|is|are|of|for|between|contains?))? ?:?",
        r"(?:rais\w+|suggest\w+) (?:the |a |some |clinical )*(?:possibility|question|suspicion|concern"
        r"|prospect)(?: (?:of|for))?",
        r"(?:most |very |more |less |quite |highly )?(?:possibl[ey]|probabl[ey]|likely|unlikely|presumabl[ey]"
        r"|presumed|presumptive|potential(?:ly)?|perhaps|maybe|conceivabl[ey]|suspected|suspect|questionable"
        r"|questioned|queried|query|equivocal|doubtful|borderline|tentative|arguabl[ey]|indeterminate)"
        r"(?: (?:due|secondary|related|attributable) to| from| because of| representing| represents?"
        r"| reflecting| reflects?| indicating)?",
        r"(?:possibility|possibilities|question|suspicion|suspicious|concern|concerns|concerning|worrisome"
        r"|worrying|hint|likelihood|probability|consideration|chance) (?:of|for|that|about|include\w*)",
        r"(?:a|one|another|real|distinct|remote|the) (?:possibility|consideration|concern|question)",
        r"(?:(?<!\d )may(?! \d)|might|could|would) (?:also |well |still |merely |simply |then )*(?:be|have"
        r"|represent|reflect|indicate|suggest|relate|correspond|signify|mean|hide|mask|obscure|contain|account"
        r"|include|constitute|denote|favou?r)?(?: (?:due|secondary|related|attributable|from) ?(?:to)?)?",
        r"suggest(?:s|ed|ing|ive|ion)?(?: of)?|favou?r(?:s|ed|ing)?(?: to (?:represent|be))?|(?:thought|felt"
        r"|believed|assumed|presumed) to (?:be|represent|reflect)",
        r"(?:not|n't) (?:\w+ )?(?:well|clearly|optimally|fully|adequately) (?:seen|visuali[sz]ed|evaluated"
        r"|assessed|demonstrated|shown|delineated)",
        r"(?:difficult|hard|impossible|unable|not possible|cannot be|can't be"
        r"|not) (?:to )?(?:be )?(?:\w+ly )?(?:assess|evaluate|judge|interpret|confirm)(?:ed)?(?: (?:for"
        r"|or exclude))?",
        r"with or without",
        r"(?:may|might|could|would) (?:also |well )?(?:have|give|account|explain|cause|produce|be responsible"
        r"|be the cause)",
        r"(?:hard|difficult|impossible|unable|not possible) to (?:tell|say|know|determine)(?: (?:if"
        r"|whether))?(?: (?:there|this) is)?|not (?:entirely )?(?:sure|certain|clear)(?: (?:if|whether))?",
        r"suspicious|either|alternatively|consider(?:ing)?|not certain|uncertain|unclear(?: if| whether)?"
        r"|rather than|as opposed to|mimic\w*|simulat\w+|resembl\w+|not (?:entirely )?specific|simulating",
    ),
    "question": (r"\?+",),
    # Deny what stands before them, or else what comes after.
    "denial": (
        r"(?:(?:is|are|was|were|has|have|had|been|do|does|did|can|could|be) )?(?:not|no longer|never|n't"
        rf"|cannot|can't)(?: (?:been|be|any ?longer|\w+ly|yet|now|well))*+ {_SEEN}",
        r"(?:(?:has|have|had|is|are|was|were|been|now|since|completely|fully|totally|entirely|all|also|interval"
        r"|subsequently) )*"
        r"(?:resolved|cleared(?: up)?|disappeared|vanished|gone|re ?absorbed|excluded|ruled out|absent"
        r"|negative(?! for)|refuted|none(?! of)|unseen|undetected|healed|(?:completely |fully "
        r"|successfully )?(?:drained|resected|excised|evacuated|repaired|removed|ablated)|re ?(?:expanded"
        r"|inflated|aerated)|(?:is|are) lacking)",
    ),
    # Deny what comes after them.
    "negation": (
        r"no (?:\w+ )?(?:evidence|signs?|suggestion|indication|features?|findings?|radiographic|feature"
        r"|suspicion|sign|hint|trace|focus|area|areas) (?:\w+ )?(?:of|for|to suggest|suggesting|suggestive of"
        r"|suspicious for)",
        r"non(?= (?:enlarged|dilated))|(?:no longer|no|nil|zero|none of|not|without|w/o|never|neither|nor)\b",
        r"n't|(?:isnt|doesnt|can't see|cannot see|cannot)\b",
        r"(?:free|clear|devoid|void|bereft) (?:of|from)|(?:the )?(?:absence|lack) of|lack(?:s|ing)"
        r"|neg(?:ative)? for|den(?:y|ies|ied|ying)|nothing",
        r"excludes|excluding|rules out|fail(?:s|ed|ure)? to (?:show|demonstrate|reveal|identify|detect|see)"
        r"|against|argues? against|unremarkable for",
        r"(?:interval |complete |full |total |near |previous )*(?:resolution|clearance|disappearance|clearing) of",
    ),
    # End the reach of any cue.
    "break": (
        r"\b(?:but|however|although|though|whereas|while|yet|albeit|nevertheless|nonetheless|instead|otherwise"
        r"|meanwhile"
        r"|except(?:ing|ion)?(?: (?:for|of|that))?|other than|apart from|aside from|besides|save for|barring"
        r"|notwithstanding|with the exception of|outside of|unlike|beyond|limited (?:by|due to))\b",
        r"\.(?= (?:it|this|these|they|both)\b)|(?:;|:|[–—]| -+ |\u2022|\u2192| -> |=)",
    ),
    # Ends history alone.
    "now": (r"\b(?:now|today|current(?:ly)?|at present|at this time)\b",),
    # End the reach of a denial or a doubt, not of history.
    "cause": (
        r"\b(?:because(?: of)?|due to|owing to|secondary to|related to|caused by|despite|in spite of"
        r"|in the (?:setting|presence|context|background|face) of|superimposed (?:up)?on|on a background of"
        r"|in addition to"
        r"|adjacent to|associated with|following|after|overlying|obscur(?:ed|ing) (?:by)?|accompan(?:ied"
        r"|ying) (?:by)?|surrounding|complicating|resulting (?:in|from)|given|in view of|as a result of)\b",
    ),
    "slash": (r"(?<=\w\w) ?/ ?(?=\w\w)",),
    "or": (r"(?:,? ?\b(?:and ?/ ?or|n?or)\b)(?! nor\b)(?: even| of| any| other)*",),
    "versus": (r",? ?\b(?:versus|vs\.?)(?= )",),
    "and": (r",? ?\b(?:and|as well as|along with|together with|plus)\b(?: also| then)?| ?&|\+",),
    "with": (r"\bw/(?!o\b)|,? ?\bwith\b(?! or without)(?: (?:an?|some|associated))?",),
    "open": (r"[(\[]",),
    "close": (r"[)\]]",),
    "comma": (r",",),
}

# A member of a list that begins so is said of the film, although a denial stands before it in the sentence.
# "Cardiomegaly may be projectional": the finding itself is doubted, not its cause.
_ARTEFACT_WORDS = (
    r"(?: (?:due|secondary|related) to| accentuated by| exaggerated by| from)?(?: the| an?)? ?(?:ap\b"
    r"|projection\w*|technique|technical|position\w*|rotation\w*|magnif\w*"
    r"|art[ei]fact\w*|supine|expiratory|overl\w+|superimpos\w*|spurious|exaggerated|accentuated|composite|summation)"
)
_AFFIRMING_WORDS = (
    r"(?:there|it|this|these|those|the|a|an|some|small|tiny|trace|minimal|mild|moderate|severe|large|left|right"
    r"|bilateral|bibasal|bibasilar|biapical|basal|stable|unchanged|persistent|persisting|residual|chronic|known"
    r"|again|increas(?:ed|ing)|decreas(?:ed|ing)|improv(?:ed|ing)|worsen(?:ed|ing)|slight|slightly|mildly"
    r"|moderately|new|multiple|several|marked|partial|old|stable|extensive|patchy|only|just|continued|subtle"
    r"|minor|unilateral|\d[\w.]*)"
)
_VERB_WORDS = (
    r"(?:is|are|was|were|has|have|had|appears?|remains?|seems?|shows?|demonstrates?|persists?|measures?|contains?|lies"
    r"|extends?|continues?|reveals?|developed|there's)"
)
_STILL_WORDS = (
    r"(?:persist(?:s|ed|ing|ent)?|remain(?:s|ed|ing)?|unchanged|stable|again (?:seen|noted|present|demonstrated"
    r"|visible)|increased|decreased|improved|improving|worse(?:ned|ning)?|larger|smaller|progress(?:ed|ion)"
    r"|enlarged|enlarging"
    r"|continues|reduced|diminished|not (?:significantly |substantially |markedly )?changed|resolving|as before"
    r"|still (?:seen|present|visible)|more (?:prominent|extensive|conspicuous)|less (?:prominent|extensive"
    r"|conspicuous))"
)
_NOW_WORDS = (
    rf"(?:is|are|has|have|{_STILL_WORDS}|again|now|today|currently|still|resolved|cleared|no longer|this film|current"
    r"|gone)"
)
# What else a film may show in place of a finding: "pneumonia or aspiration".
_ALTERNATIVE_WORDS = (
    r"(?:an? |the )?(?:\w+ )?(?:aspiration|ha?emorrhage|infection|art[ei]facts?|skin ?folds?|vessels?|overlap|fat pad"
    r"|infarct\w*|eventration|summation|nipple\w*|contusion)\b"
)

# ── Small words of grammar ───────────────────────────────────────────────────────────────────────────────────────────

AFFIRMING = re.compile(rf"\s*(?:{_AFFIRMING_WORDS})\b")
VERB = re.compile(rf"\b{_VERB_WORDS}\b")
EXISTS = re.compile(rf"\b(?:is|are|was|were|has|have|had)(?: (?:been|also|again|now|\w+ly))*+ {_SEEN}\b")
# "No pneumothorax, cardiomegaly is noted" affirms; "no pneumothorax, effusion is seen" goes on denying.
RUN_ON = re.compile(r"(?:is|was|has been)(?: \w+)* (?:noted|present)")
STILL = re.compile(rf"\b{_STILL_WORDS}\b")
NOW = re.compile(rf"\b{_NOW_WORDS}\b")
AUXILIARY = re.compile(r"(?:is|are|was|were|has|have|had|been|not|n't|no longer|never|cannot|now|since)\b")
AT_ITS_END = re.compile(
    rf"(?: {_SEEN}| considered| missed| excluded| suspected| clinically| here)?\s*"
    r"(?:$|[.?!)]|(?:in|at|on|given|if|based|within|by|to be|over|of the)\b)"
)
PASSIVE = re.compile(r"(?:excluded|ruled out|considered|account|explain|cause|produce|give|have|responsible)$")
ALTERNATIVE = re.compile(rf"\s*{_ALTERNATIVE_WORDS}")
ARTEFACT = re.compile(_ARTEFACT_WORDS)
MODAL = re.compile(r"(?:may|might|could|would)\b")
NO_SUBJECT = re.compile(
    r"(?:\s*\b(?:which|that|it|this|these|all|both|now|has|have|had|been|since|is|are|was|were|previously"
    r"|(?:seen|noted|present|described)(?: \w+){0,4}|\w+ly|(?:on|in|at) (?:the )?\w+(?: \w+)?)\b)*+\s*$"
)
PRONOUN = re.compile(r"\s*(?:it|this|these|they|both|all|which)\b")
PREDICATE = re.compile(r"(?:enlarged|increased|blunted|thickened|flattened|clear|normal|flat|large|prominent)$")
VALUE = re.compile(
    r"(?: (?:changes?|disease|opacit(?:y|ies)|densit(?:y|ies)|lesions?|shadows?|markings?|lines?|process|pattern))?"
    r"(?: ?\(s\))?(?: ?(?:(?P<colon>[:=])|(?P<bracket>\()|\?| -+ |[–—]) ?| (?=(?:no|yes) ?(?:[,.;]|$)))(?:"
    r"(?P<aside>n/?a\b|not (?:assess|evaluat|applic)\w*|unknown|see )"
    r"|(?P<absent>(?:all )?(?:no|none|nil|negative|neg|absent|not|denied|false|0|unremarkable|normal|clear|resolved"
    r"|excluded|ruled out)\b|-(?=\)))"
    r"|(?P<present>\+|yes|present|positive|seen|noted|true|small|mild|moderate|severe|large|tiny|trace|minimal|stable"
    r"|unchanged)"
    r"|(?P<uncertain>possibl\w+|probabl\w+|likely|suspected|questionable|uncertain|equivocal|cannot be excluded|\?"
    r"|maybe|indeterminate|borderline))?"
)
NORMAL_VALUE = re.compile(r"\b(?:normal|unremarkable|clear|intact|sharp|no|not|without|absence|absent|none|free)\b")
