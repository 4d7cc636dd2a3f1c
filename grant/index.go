package grant

import (
	"slices"
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The index finds the triggers of an event. Its price depends on the event and on the triggers that nearly match,
// not on how many triggers exist, and it allocates nothing: most of what happens on a social server matches nothing.
//
// The operation leads to a tree with a level for each segment of a domain; the event's domain leads down along a few
// branches ("*", "group:*", "group:42", "group:42/thread:*" …). On each, the event's App and what it was done to lead
// to the candidates.
type index struct {
	all     map[Operation]*branch
	chained map[Operation]*branch // the triggers with Chain: the only ones for what apps do (P7)
}

// A branch is where a pattern ends, and where longer ones go on.
type branch struct {
	ids   map[string]*branch // by a whole segment, "group:42"
	kinds map[string]*branch // by the kind, for "group:*"
	apps  map[string]*candidates
	any   candidates // of all apps, for events that name none
}

type candidates struct {
	open    []*trigger            // nothing to look up by
	targets map[string][]*trigger // by Match.Target or Match.Command
	links   map[string][]*trigger // by the scheme and host of Match.LinkPrefix, in the byte order of the latter
	words   *words                // by Match.Keywords
}

func newIndex(triggers []*trigger) index {
	x := index{all: map[Operation]*branch{}, chained: map[Operation]*branch{}}
	for _, t := range triggers {
		insert(x.all, t)
		if t.Chain {
			insert(x.chained, t)
		}
	}
	for _, operations := range []map[Operation]*branch{x.all, x.chained} {
		for _, b := range operations {
			b.sort()
		}
	}
	return x
}

func insert(operations map[Operation]*branch, t *trigger) {
	b := child(&operations, t.On)
	if t.in.String() != "*" {
		for segment := range strings.SplitSeq(t.in.String(), "/") {
			if kind, ok := strings.CutSuffix(segment, ":*"); ok {
				b = child(&b.kinds, kind)
			} else {
				b = child(&b.ids, segment)
			}
		}
	}
	child(&b.apps, t.App).add(t)
	if !t.On.namesApp() {
		b.any.add(t)
	}
}

// child returns m[key], made if it is missing.
func child[K comparable, V any](m *map[K]*V, key K) *V {
	if *m == nil {
		*m = map[K]*V{}
	}
	v := (*m)[key]
	if v == nil {
		v = new(V)
		(*m)[key] = v
	}
	return v
}

func (c *candidates) add(t *trigger) {
	m := &t.Match
	switch {
	case m.Target != "":
		c.targets = appendTo(c.targets, m.Target, t)
	case m.Command != "":
		c.targets = appendTo(c.targets, m.Command, t)
	case m.LinkPrefix != "":
		c.links = appendTo(c.links, origin(m.LinkPrefix), t)
	case len(t.keywords) == 0:
		c.open = append(c.open, t)
		return
	default:
		if c.words == nil {
			c.words = new(words)
		}
		c.words.add(t)
		return
	}
	if len(t.keywords) > 0 && t.words == nil {
		t.words = new(words)
		t.words.add(t)
	}
}

func appendTo(m map[string][]*trigger, key string, t *trigger) map[string][]*trigger {
	if m == nil {
		m = map[string][]*trigger{}
	}
	m[key] = append(m[key], t)
	return m
}

func (b *branch) sort() {
	for _, deeper := range []map[string]*branch{b.ids, b.kinds} {
		for _, next := range deeper {
			next.sort()
		}
	}
	for _, c := range b.apps {
		c.sort()
	}
	b.any.sort()
}

func (c *candidates) sort() {
	for _, links := range c.links {
		slices.SortStableFunc(links, func(a, b *trigger) int { return strings.Compare(a.Match.LinkPrefix, b.Match.LinkPrefix) })
	}
}

// match appends the triggers of ev to found.
func (x *index) match(ev *Event, found []*trigger) []*trigger {
	operations := x.all
	if ev.By != "" {
		operations = x.chained
	}
	b := operations[ev.Operation]
	if b == nil {
		return found
	}
	var heard heard
	found = b.match(ev, ev.Domain.String(), found, &heard)
	return heard.match(ev, found)
}

// heard are the keywords on all branches, so that a text is read once.
type heard struct {
	n     int
	words [8]*words
}

func (h *heard) match(ev *Event, found []*trigger) []*trigger {
	if h.n == 0 {
		return found
	}
	find(ev.Text, h.words[:h.n], func(said []*trigger) bool {
		for _, t := range said {
			if !slices.Contains(found, t) {
				found = append(found, t)
			}
		}
		return true
	})
	h.n = 0
	return found
}

// match goes down by what of the event's domain is left.
func (b *branch) match(ev *Event, domain string, found []*trigger, heard *heard) []*trigger {
	c := &b.any
	if ev.App != "" {
		c = b.apps[ev.App]
	}
	if c != nil {
		found = c.match(ev, found)
		if c.words != nil {
			if heard.n == len(heard.words) {
				found = heard.match(ev, found)
			}
			heard.words[heard.n] = c.words
			heard.n++
		}
	}
	if domain == "" {
		return found
	}
	segment, rest, _ := strings.Cut(domain, "/")
	if next := b.ids[segment]; next != nil {
		found = next.match(ev, rest, found, heard)
	}
	if len(b.kinds) > 0 {
		kind, _, _ := strings.Cut(segment, ":")
		if next := b.kinds[kind]; next != nil {
			found = next.match(ev, rest, found, heard)
		}
	}
	return found
}

func (c *candidates) match(ev *Event, found []*trigger) []*trigger {
	found = append(found, c.open...)
	if ev.Target != "" {
		if len(c.targets) > 0 {
			found = accept(c.targets[ev.Target], ev, found)
			if command := strings.TrimPrefix(ev.Target, "/"); command != ev.Target {
				found = accept(c.targets[command], ev, found)
			}
		}
		if len(c.links) > 0 {
			found = acceptPrefixes(c.links[origin(ev.Target)], ev, found)
		}
	}
	return found
}

func accept(from []*trigger, ev *Event, found []*trigger) []*trigger {
	for _, t := range from {
		if t.accepts(ev) {
			found = append(found, t)
		}
	}
	return found
}

// acceptPrefixes finds those whose LinkPrefix begins the event's Target, from the longest on: nothing that sorts
// between a string and its longest prefix in the list is a prefix of it.
func acceptPrefixes(sorted []*trigger, ev *Event, found []*trigger) []*trigger {
	for key := ev.Target; len(sorted) > 0; {
		i := sort.Search(len(sorted), func(i int) bool { return sorted[i].Match.LinkPrefix > key })
		if i == 0 {
			break
		}
		prefix := sorted[i-1].Match.LinkPrefix
		if n := common(prefix, key); n < len(prefix) {
			key = key[:n]
			continue
		}
		first := i - 1
		for first > 0 && sorted[first-1].Match.LinkPrefix == prefix {
			first--
		}
		found = accept(sorted[first:i], ev, found)
		sorted, key = sorted[:first], prefix
	}
	return found
}

// common is the length of what a and b have in common at their beginnings.
func common(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// accepts checks what the way through the index has not, for a trigger that was looked up by what the event was done to.
func (t *trigger) accepts(ev *Event) bool {
	m := &t.Match
	switch {
	case m.Target != "" && ev.Target != m.Target:
		return false
	case m.Command != "" && strings.TrimPrefix(ev.Target, "/") != m.Command:
		return false
	case m.LinkPrefix != "" && !strings.HasPrefix(ev.Target, m.LinkPrefix):
		return false
	case t.words == nil:
		return true
	}
	said := false
	find(ev.Text, []*words{t.words}, func([]*trigger) bool {
		said = true
		return false
	})
	return said
}

// origin is the part of a URL before its path: "https://bookbot.example".
func origin(link string) string {
	i := strings.Index(link, "://")
	if i < 0 {
		return ""
	}
	if j := strings.IndexAny(link[i+3:], "/?#"); j >= 0 {
		return link[:i+3+j]
	}
	return link
}

// words is a tree of keywords, a letter each level, folded: however many keywords there are, a text is read once,
// from each place where a word may begin.
type words struct {
	some    uint64   // a bit for each letter, modulo 64: most letters lead nowhere, and need not be looked for
	letters []rune   // in order
	next    []*words // one for each letter
	ends    []*trigger
}

func (w *words) step(letter rune) *words {
	if w.some>>(uint(letter)%64)&1 == 0 {
		return nil
	}
	return w.look(letter)
}

func (w *words) look(letter rune) *words {
	i, j := 0, len(w.letters)
	for i < j {
		if mid := int(uint(i+j) >> 1); w.letters[mid] < letter {
			i = mid + 1
		} else {
			j = mid
		}
	}
	if i < len(w.letters) && w.letters[i] == letter {
		return w.next[i]
	}
	return nil
}

func (w *words) add(t *trigger) {
	for _, keyword := range t.keywords {
		at := w
		for _, r := range keyword {
			next := at.step(r)
			if next == nil {
				i, _ := slices.BinarySearch(at.letters, r)
				next = new(words)
				at.some |= 1 << (uint(r) % 64)
				at.letters, at.next = slices.Insert(at.letters, i, r), slices.Insert(at.next, i, next)
			}
			at = next
		}
		if !slices.Contains(at.ends, t) {
			at.ends = append(at.ends, t)
		}
	}
}

// find calls yield with the triggers of each keyword that stands in text as a word, until yield returns false. A
// letter or digit of a script that puts spaces between words may not go on before or after it; Chinese, Japanese,
// Thai and the like put none.
func find(text string, keywords []*words, yield func([]*trigger) bool) {
	var some uint64 // of all of them
	for _, w := range keywords {
		some |= w.some
	}
	inWord := false
	for start := 0; start < len(text); {
		r, size := rune(text[start]), 1
		if r >= utf8.RuneSelf {
			r, size = utf8.DecodeRuneInString(text[start:])
		}
		goesOn := inWord
		if inWord = spaced(r); !inWord || !goesOn {
			if first := foldRune(r); some>>(uint(first)%64)&1 != 0 {
				for _, w := range keywords {
					if next := w.step(first); next != nil && !next.walk(text[start:], r, yield) {
						return
					}
				}
			}
		}
		start += size
		for inWord && start < len(text) && text[start] < utf8.RuneSelf && asciiWord[text[start]] { // to the end of the word
			start++
		}
	}
}

// walk goes on from where the first letter of text has led.
func (w *words) walk(text string, last rune, yield func([]*trigger) bool) bool {
	_, n := utf8.DecodeRuneInString(text)
	for {
		text = text[n:]
		r, size := rune(0), 1
		if len(text) > 0 && text[0] < utf8.RuneSelf {
			r = rune(text[0])
		} else {
			r, size = utf8.DecodeRuneInString(text)
		}
		if len(w.ends) > 0 && !(size > 0 && spaced(last) && spaced(r)) && !yield(w.ends) {
			return false
		}
		if w = w.step(foldRune(r)); w == nil || size == 0 {
			return true
		}
		last, n = r, size
	}
}

// spaced reports whether r is part of a word in a script that separates words.
func spaced(r rune) bool {
	if r < utf8.RuneSelf {
		return asciiWord[r]
	}
	return spacedWide(r)
}

func spacedWide(r rune) bool {
	switch {
	case 0x3400 <= r && r <= 0x9fff, // Han
		r == 'ー', r == 'ｰ': // the mark for a long vowel belongs to no one script
		return false
	}
	return (unicode.IsLetter(r) || unicode.IsDigit(r) || unicode.IsMark(r)) &&
		!unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Bopomofo, unicode.Thai, unicode.Lao, unicode.Khmer, unicode.Myanmar)
}

// foldRune makes runes that differ in case equal.
func foldRune(r rune) rune {
	if r < utf8.RuneSelf {
		return asciiFold[r]
	}
	return foldWide(r)
}

func foldWide(r rune) rune {
	if 0x2e80 <= r && r <= 0xa63f { // Han, kana and their like have no case
		return r
	}
	return unicode.ToLower(unicode.ToUpper(r)) // by way of the upper case, because some have several lower ones: σ and ς
}

// Most of what is said is decided by these tables.
var asciiWord, asciiFold = func() (word [utf8.RuneSelf]bool, fold [utf8.RuneSelf]rune) {
	for r := range rune(utf8.RuneSelf) {
		fold[r] = unicode.ToLower(r)
		word[r] = unicode.IsLetter(r) || unicode.IsDigit(r) || r == '_'
	}
	return word, fold
}()

func fold(s string) string { return strings.Map(foldRune, s) }
