package scope

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A Risk says how much harm an action can do to the user in whose name it is done. Risks are ordered.
// The zero Risk is none that anybody judged; [NewCatalog] takes it as [High].
type Risk int

// The risks, from the least.
const (
	Low    Risk = iota + 1 // easily seen and undone: a reaction, a list of members
	Medium                 // speaks for the user, or reads what they read
	High                   // lasting, or hard to undo
)

// String returns "low", "medium" or "high", and "unknown" for any other value.
func (r Risk) String() string {
	switch r {
	case Low:
		return "low"
	case Medium:
		return "medium"
	case High:
		return "high"
	}
	return "unknown"
}

// Free is the Cost of an action that is checked and not spent.
const Free = -1

const (
	maxWords = 256 // bytes of the words for an action in one language
	maxTag   = 64  // bytes of a language tag
)

// An Action is one thing that an app may do for a user.
type Action struct {
	// Name is what scopes call it, such as "message.write"; see [CheckAction]. Required.
	Name string
	// Words say it to people, by language (a BCP 47 tag): "en" is required. One line of at most 256 bytes each.
	Words map[string]string
	// Risk decides how it is shown and asked for. Zero means [High]: nobody has judged it.
	Risk Risk
	// Cost is how many uses of a token one call spends. Zero means 1; [Free] means none.
	Cost int
}

// A Catalog is the actions that a server knows. It does not change after it was made, so any number of goroutines
// may use it. The zero Catalog knows none.
type Catalog struct {
	names   []string
	actions map[string]Action
}

// NewCatalog returns the catalog of the actions. One error reports all faults: names that [CheckAction] refuses
// (these wrap [ErrSyntax]) or that occur twice, missing or unusable words, unknown risks, costs below [Free].
func NewCatalog(actions ...Action) (*Catalog, error) {
	c := &Catalog{actions: make(map[string]Action, len(actions))}
	var faults []error
	for i, a := range actions {
		at := fmt.Sprintf("scope: action %d", i)
		if err := CheckAction(a.Name); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", at, err))
		} else {
			at += " (" + a.Name + ")"
		}
		if _, twice := c.actions[a.Name]; twice {
			faults = append(faults, fmt.Errorf("%s: the name occurs twice", at))
		}
		words, err := checkWords(a.Words)
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", at, err))
		}
		a.Words = words
		switch {
		case a.Risk == 0:
			a.Risk = High
		case a.Risk < Low || a.Risk > High:
			faults = append(faults, fmt.Errorf("%s: unknown risk %d", at, int(a.Risk)))
		}
		switch {
		case a.Cost == 0:
			a.Cost = 1
		case a.Cost < Free:
			faults = append(faults, fmt.Errorf("%s: cost %d is below Free", at, a.Cost))
		}
		c.actions[a.Name] = a
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	c.names = slices.Sorted(maps.Keys(c.actions))
	return c, nil
}

// checkWords returns a copy with lower-case tags: they compare without case (RFC 5646 §2.1.1).
func checkWords(words map[string]string) (map[string]string, error) {
	var faults []error
	checked := make(map[string]string, len(words))
	for _, lang := range slices.Sorted(maps.Keys(words)) {
		text, tag := words[lang], strings.ToLower(lang)
		if !isTag(tag) {
			faults = append(faults, fmt.Errorf("words: %s is not a language tag", excerpt(lang, 0)))
			continue
		}
		if _, twice := checked[tag]; twice {
			faults = append(faults, fmt.Errorf("words: language %s occurs twice", tag))
		}
		switch {
		case strings.TrimSpace(text) == "":
			faults = append(faults, fmt.Errorf("words: those in %q are empty", lang))
		case len(text) > maxWords:
			faults = append(faults, fmt.Errorf("words: those in %q have %d bytes, over the limit of %d", lang, len(text), maxWords))
		case !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl):
			faults = append(faults, fmt.Errorf("words: those in %q are not one line of UTF-8", lang))
		}
		checked[tag] = text
	}
	if _, ok := checked["en"]; !ok {
		faults = append(faults, errors.New(`words: "en" is missing`))
	}
	return checked, errors.Join(faults...)
}

// isTag takes the shape of RFC 5646 §2.1 in lower case: a language of letters, then subtags, of 1 to 8 each.
func isTag(tag string) bool {
	first := true
	for sub := range strings.SplitSeq(tag, "-") {
		if len(sub) < 1 || len(sub) > 8 || first && len(sub) < 2 {
			return false
		}
		for i := 0; i < len(sub); i++ {
			if !isLower(sub[i]) && (first || !isDigit(sub[i])) {
				return false
			}
		}
		first = false
	}
	return len(tag) <= maxTag
}

// BuiltIn returns a catalog of what most social servers have, with words in "en" and "zh":
// message.read, message.write, member.read, reaction.write, file.read and file.write, each at a cost of 1.
func BuiltIn() *Catalog {
	c, err := NewCatalog(
		Action{Name: "message.read", Risk: Medium, Words: map[string]string{"en": "Read messages", "zh": "读取消息"}},
		Action{Name: "message.write", Risk: Medium, Words: map[string]string{"en": "Write messages in your name", "zh": "以你的名义发送消息"}},
		Action{Name: "member.read", Risk: Low, Words: map[string]string{"en": "See who is a member", "zh": "查看成员名单"}},
		Action{Name: "reaction.write", Risk: Low, Words: map[string]string{"en": "Add reactions in your name", "zh": "以你的名义添加表情回应"}},
		Action{Name: "file.read", Risk: Medium, Words: map[string]string{"en": "Read files", "zh": "读取文件"}},
		Action{Name: "file.write", Risk: High, Words: map[string]string{"en": "Add and change files in your name", "zh": "以你的名义上传和修改文件"}},
	)
	if err != nil {
		panic(err) // a literal of this file is wrong; its test says so first
	}
	return c
}

// Lookup returns the action of the name, and whether the catalog has it: with its Risk and Cost filled in and the
// tags of its Words in lower case. The Words are the caller's own copy.
func (c *Catalog) Lookup(name string) (Action, bool) {
	a, ok := c.actions[name]
	a.Words = maps.Clone(a.Words)
	return a, ok
}

// Cost returns how many uses one call of the action spends, 0 for a [Free] one, and whether the catalog has it.
// It allocates nothing.
func (c *Catalog) Cost(name string) (uses int, ok bool) {
	a, ok := c.actions[name]
	return max(0, a.Cost), ok
}

// Names returns the names of all actions, sorted.
func (c *Catalog) Names() []string { return slices.Clone(c.names) }

// Words returns the words for the action in the language, a BCP 47 tag such as "zh-CN". Without such words it looks
// for those of shorter tags, then "en" (RFC 4647 §3.4). For an action that the catalog does not have it returns the
// name itself: a page that asks somebody must never ask for nothing.
func (c *Catalog) Words(name, lang string) string {
	a, ok := c.actions[name]
	if !ok {
		return name
	}
	if len(lang) > maxTag {
		lang = "" // no tag, whatever it is: looking costs the square of its length
	}
	for tag := strings.ToLower(lang); tag != ""; {
		if text, ok := a.Words[tag]; ok {
			return text
		}
		tag = tag[:max(0, strings.LastIndexByte(tag, '-'))]
	}
	return a.Words["en"]
}
