package grant

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// naive asks each trigger, in the words of its documentation.
func naive(triggers []Trigger, ev *Event) (found []string) {
	for _, t := range triggers {
		if t.On == ev.Operation && (ev.App == "" || ev.App == t.App) && (ev.By == "" || t.Chain) && naiveIn(t.In, ev.Domain.String()) &&
			(t.Match.Target == "" || t.Match.Target == ev.Target) &&
			(t.Match.Command == "" || strings.TrimPrefix(t.Match.Command, "/") == strings.TrimPrefix(ev.Target, "/")) &&
			strings.HasPrefix(ev.Target, t.Match.LinkPrefix) &&
			(len(t.Match.Keywords) == 0 || slices.ContainsFunc(t.Match.Keywords, func(k string) bool { return naiveSays(ev.Text, k) })) {
			found = append(found, t.ID)
		}
	}
	slices.Sort(found)
	return found
}

func naiveIn(pattern, domain string) bool {
	if pattern == "*" {
		return true
	}
	want, have := strings.Split(pattern, "/"), strings.Split(domain, "/")
	if len(want) > len(have) {
		return false
	}
	for i, w := range want {
		if kind, any := strings.CutSuffix(w, ":*"); w != have[i] && !(any && strings.HasPrefix(have[i], kind+":")) {
			return false
		}
	}
	return true
}

func naiveSays(text, keyword string) bool {
	said, word := []rune(text), []rune(keyword)
	for i := 0; i+len(word) <= len(said); i++ {
		if !strings.EqualFold(string(said[i:i+len(word)]), keyword) {
			continue
		}
		j := i + len(word)
		if (i == 0 || !spaced(said[i-1]) || !spaced(said[i])) && (j == len(said) || !spaced(said[j-1]) || !spaced(said[j])) {
			return true
		}
	}
	return false
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func randomText(r *rand.Rand) string {
	var b strings.Builder
	for range r.IntN(8) {
		b.WriteString(pick(r, "a", "b", "A", "ab", "aba", " ", " ", "-", "书", "订", "é", "É", "1", "😀", "а", "А"))
	}
	return b.String()
}

func randomDomain(r *rand.Rand, wild bool) string {
	if wild && r.IntN(6) == 0 {
		return "*"
	}
	var parts []string
	for range 1 + r.IntN(3) {
		id := pick(r, "1", "2", "12", "%2A", "a%2Fb")
		if wild && r.IntN(2) == 0 {
			id = "*"
		}
		parts = append(parts, pick(r, "g", "gr", "t")+":"+id)
	}
	return strings.Join(parts, "/")
}

func randomTarget(r *rand.Rand) string {
	return pick(r, "", "/a", "a", "//a", "/", "b", "https://a.example/", "https://a.example/x", "https://a.example/x/y", "https://a.example/xy?z",
		"https://a.example", "https://a.example.evil/x", "http://a.example/x", "https://b.example/x", "https://a.example@b.example/x")
}

var testApps = []App{{ID: "one", Actions: []string{"message.write"}}, {ID: "two", Actions: []string{"message.write"}}, {ID: "three", Actions: []string{"message.write"}}}

func randomTrigger(r *rand.Rand, id string) Trigger {
	t := Trigger{ID: id, App: pick(r, testApps...).ID, On: pick(r, MessagePost, LinkOpen, "x.y"), In: randomDomain(r, true), Allow: []string{"message.write"}, Chain: r.IntN(3) == 0}
	for range pick(r, 0, 0, 1, 3) {
		if k := randomText(r); strings.TrimSpace(k) == k && k != "" {
			t.Match.Keywords = append(t.Match.Keywords, k)
		}
	}
	if r.IntN(4) == 0 {
		t.Match.Target = randomTarget(r)
	}
	if c := randomTarget(r); r.IntN(4) == 0 && c != "/" {
		t.Match.Command = c
	}
	if l := randomTarget(r); r.IntN(3) == 0 && strings.Count(l, "/") > 2 && !strings.Contains(l, "@") {
		t.Match.LinkPrefix = l
	}
	return t
}

func randomEvent(r *rand.Rand) *Event {
	return &Event{ID: "1", Operation: pick(r, MessagePost, LinkOpen, "x.y", Mention), Account: "zhang-san", Domain: scope.MustDomain(randomDomain(r, false)),
		App: pick(r, "", "one", "two", "four"), Text: randomText(r), Target: randomTarget(r), By: pick(r, "", "", "g")}
}

func TestIndexFindsWhatAScanFinds(t *testing.T) {
	matched := 0
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 7))
		var triggers []Trigger
		for i := range 1 + r.IntN(60) {
			triggers = append(triggers, randomTrigger(r, fmt.Sprint(i)))
		}
		e, err := NewEngine(Config{Store: store.NewMemory(), Key: NewSecret(strings.Repeat("k", 32)), Apps: testApps, Triggers: triggers,
			Permit: func(context.Context, Access) error { return nil }})
		require.NoError(t, err)
		for range 500 {
			ev := randomEvent(r)
			var got []string
			for _, found := range e.known().triggers.match(ev, nil) {
				got = append(got, found.ID)
			}
			slices.Sort(got)
			want := naive(triggers, ev)
			require.Equal(t, want, got, "seed %d, event %+v", seed, ev)
			matched += len(want)
		}
	}
	require.Greater(t, matched, 5_000)
}

// A text that is made to be expensive costs no more than its length: the keywords of a group are known to those who
// post in it.
func TestKeywordsAreReadOnce(t *testing.T) {
	w := &words{}
	for i := range 100 {
		w.add(&trigger{keywords: []string{strings.Repeat("a", i+1), strings.Repeat("书", i%80+1), fmt.Sprint("a b", i)}})
	}
	steps := 0
	for _, text := range []string{strings.Repeat("a", maxText), strings.Repeat("a ", maxText/2), strings.Repeat("a b", maxText/3), strings.Repeat("a b1 ", maxText/5)} {
		find(text, []*words{w}, func(said []*trigger) bool { steps += len(said); return true })
	}
	require.Less(t, steps, 20*maxText)
}

const manyTriggers = 100_000

// manyEngine has triggers of 1000 apps, a hundred of which could be meant in each group.
func manyEngine(t testing.TB, triggers int) *Engine {
	c := Config{Store: store.NewMemory(), Key: NewSecret(strings.Repeat("k", 32)), Permit: func(context.Context, Access) error { return nil }}
	const apps = 1000
	for a := range apps {
		c.Apps = append(c.Apps, App{ID: fmt.Sprint("app-", a), Actions: []string{"message.write"}})
	}
	for i := range triggers {
		tr := Trigger{ID: fmt.Sprint(i), App: fmt.Sprint("app-", i%apps), Allow: []string{"message.write"}, In: fmt.Sprint("group:", i/100)}
		switch {
		case i%1000 < 10: // for all groups
			tr.In = "group:*"
		case i%7 == 0:
			tr.In += fmt.Sprint("/thread:", i)
		}
		switch i % 6 {
		case 0:
			tr.On = Mention
		case 1:
			tr.On, tr.Match.Command = Command, fmt.Sprint("/command-", i)
		case 2:
			tr.On, tr.Match.LinkPrefix = LinkOpen, fmt.Sprintf("https://app-%d.example/%d/", i%apps, i)
		case 3:
			tr.On, tr.Match.Keywords = MessagePost, []string{fmt.Sprint("keyword-", i), fmt.Sprint("book", i)}
		case 4:
			tr.On, tr.Match.Target = ReactionAdd, fmt.Sprint("emoji-", i)
		case 5:
			tr.On, tr.Match.Target = ButtonPress, fmt.Sprint("button-", i)
		}
		c.Triggers = append(c.Triggers, tr)
	}
	e, err := NewEngine(c)
	require.NoError(t, err)
	return e
}

// noMatches are events in a group that has triggers of their operations.
func noMatches() map[string]Event {
	in := scope.MustDomain("group:42/thread:7")
	out := map[string]Event{}
	for _, ev := range []Event{
		{Operation: Mention, App: "app-1"},
		{Operation: Command, Target: "/unknown"},
		{Operation: LinkOpen, Target: "https://www.example/some/page?of=it"},
		{Operation: MessagePost, Text: "Shall we look for another book about it?"},
		{Operation: ReactionAdd, Target: "👍"},
		{Operation: ButtonPress, App: "app-1", Target: "borrow"},
		{Operation: MemberJoin},
	} {
		ev.ID, ev.Account, ev.Domain, ev.At = "m1", "zhang-san", in, time.Now()
		out[string(ev.Operation)] = ev
	}
	return out
}

func TestEmitNoMatchAllocs(t *testing.T) {
	e := manyEngine(t, 10_000)
	for name, ev := range noMatches() {
		require.Zero(t, testing.AllocsPerRun(100, func() {
			if got, err := e.Emit(context.Background(), ev); got != nil || err != nil {
				t.Fatal(got, err)
			}
		}), name)
	}
}

func BenchmarkEmitNoMatch(b *testing.B) {
	e := manyEngine(b, manyTriggers)
	for name, ev := range noMatches() {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if got, err := e.Emit(context.Background(), ev); got != nil || err != nil {
					b.Fatal(got, err)
				}
			}
		})
	}
}

// The worst that a layout of 100,000 triggers can do: all of them in one group.
func BenchmarkEmitNoMatchOneGroup(b *testing.B) {
	for name, tc := range map[string]struct {
		each func(i int, t *Trigger)
		ev   Event
	}{
		"threads":  {func(i int, t *Trigger) { t.On, t.In = MemberJoin, fmt.Sprint("group:42/thread:", i) }, Event{Operation: MemberJoin}},
		"commands": {func(i int, t *Trigger) { t.On, t.Match.Command = Command, fmt.Sprint("/c", i) }, Event{Operation: Command, Target: "/book"}},
		"one site's links": {func(i int, t *Trigger) {
			t.On, t.Match.LinkPrefix = LinkOpen, fmt.Sprintf("https://site.example/%d/", i)
		},
			Event{Operation: LinkOpen, Target: "https://site.example/page"}},
		"keywords": {func(i int, t *Trigger) { t.On, t.Match.Keywords = MessagePost, []string{fmt.Sprint("book", i)} },
			Event{Operation: MessagePost, Text: "Shall we look for another book about it?"}},
		"keywords 书": {func(i int, t *Trigger) { t.On, t.Match.Keywords = MessagePost, []string{fmt.Sprint("书", i)} },
			Event{Operation: MessagePost, Text: "我们再找一本关于它的书好吗？"}},
	} {
		c := Config{Store: store.NewMemory(), Key: NewSecret(strings.Repeat("k", 32)), Apps: testApps, Permit: func(context.Context, Access) error { return nil }}
		for i := range manyTriggers {
			t := Trigger{ID: fmt.Sprint(i), App: "one", In: "group:42", Allow: []string{"message.write"}}
			tc.each(i, &t)
			c.Triggers = append(c.Triggers, t)
		}
		e, err := NewEngine(c)
		require.NoError(b, err)
		tc.ev.ID, tc.ev.Account, tc.ev.Domain = "m1", "zhang-san", scope.MustDomain("group:42/thread:x")
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if got, err := e.Emit(context.Background(), tc.ev); got != nil || err != nil {
					b.Fatal(got, err)
				}
			}
		})
	}
}

func BenchmarkNewEngine(b *testing.B) {
	for b.Loop() {
		manyEngine(b, manyTriggers)
	}
}
