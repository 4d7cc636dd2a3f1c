package grant_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

func TestOperations(t *testing.T) {
	for _, tc := range []struct {
		on      grant.Operation
		match   grant.Match
		yes, no grant.Event
		// The defaults: the weaker the evidence that the user meant it, the shorter and fewer.
		life    time.Duration
		uses    int
		pending bool
		deliver grant.Delivery
	}{
		{grant.Mention, grant.Match{}, grant.Event{App: "bookbot", Text: "@bookbot"}, grant.Event{App: "weather"},
			10 * time.Minute, 5, false, grant.Poll},
		{grant.Command, grant.Match{Command: "/book"}, grant.Event{Target: "/book"}, grant.Event{Target: "/books"},
			10 * time.Minute, 5, false, grant.Poll},
		{grant.LinkOpen, grant.Match{LinkPrefix: "https://bookbot.example/"}, grant.Event{Target: "https://bookbot.example/b/1"}, grant.Event{Target: "https://other.example/b/1"},
			60 * time.Second, 1, false, grant.Redirect},
		{grant.PageOpen, grant.Match{Target: "shelf"}, grant.Event{App: "bookbot", Target: "shelf"}, grant.Event{App: "bookbot", Target: "shelf2"},
			60 * time.Second, 1, false, grant.Redirect},
		{grant.ButtonPress, grant.Match{Target: "borrow"}, grant.Event{App: "bookbot", Target: "borrow"}, grant.Event{App: "bookbot", Target: "Borrow"},
			60 * time.Second, 3, false, grant.Poll},
		{grant.ReactionAdd, grant.Match{Target: "📚"}, grant.Event{Target: "📚"}, grant.Event{Target: "📖"},
			60 * time.Second, 1, true, grant.Poll},
		{grant.MessagePost, grant.Match{Keywords: []string{"book"}}, grant.Event{Text: "a Book, please"}, grant.Event{Text: "a notebook, please"},
			60 * time.Second, 1, true, grant.Poll},
		{grant.MemberJoin, grant.Match{}, grant.Event{}, grant.Event{App: "weather"},
			60 * time.Second, 1, true, grant.Poll},
		{grant.FileShare, grant.Match{Target: "dune.epub"}, grant.Event{Target: "dune.epub"}, grant.Event{Target: "dune.epub2"},
			60 * time.Second, 1, true, grant.Poll},
		{"poll.vote", grant.Match{Target: "yes"}, grant.Event{Target: "yes"}, grant.Event{Target: "no"},
			60 * time.Second, 1, true, grant.Poll},
	} {
		t.Run(string(tc.on), func(t *testing.T) {
			w := newWorld(t, func(c *grant.Config) {
				c.Triggers = []grant.Trigger{{App: "bookbot", On: tc.on, In: "group:*", Match: tc.match, Allow: []string{"message.write"}}}
			})
			tc.no.ID, tc.no.Operation, tc.no.Account, tc.no.Domain = "no", tc.on, "zhang-san", group
			got, err := w.Emit(ctx, tc.no)
			require.NoError(t, err)
			require.Nil(t, got)
			tc.yes.ID, tc.yes.Operation, tc.yes.Account, tc.yes.Domain = "yes", tc.on, "zhang-san", group
			g := w.emit(tc.yes)
			require.Equal(t, tc.life, g.For)
			require.Equal(t, tc.uses, g.Uses)
			require.Equal(t, tc.deliver, g.Deliver)
			require.Equal(t, "bookbot:"+string(tc.on)+":group:*", g.Trigger)
			if tc.pending {
				require.Equal(t, "pending", g.State)
				decided, err := w.Decide(ctx, "zhang-san", g.ID, true)
				require.NoError(t, err)
				g = *decided
			}
			require.Equal(t, "issued", g.State)
			require.Equal(t, w.clock.now().Add(time.Minute).UTC(), g.RedeemBy)
			d, err := w.Use(ctx, w.redeem(g), write)
			require.NoError(t, err)
			require.Equal(t, tc.on, d.Operation)
			require.Equal(t, "yes", d.Event)
		})
	}
}

func TestAppDeliversByDefault(t *testing.T) {
	w := newWorld(t, func(c *grant.Config) {
		c.Apps[0].Deliver = grant.Push
		poll := onMention()
		poll.ID, poll.Deliver = "poll", grant.Poll
		c.Triggers = append(c.Triggers, poll)
	})
	got, err := w.Emit(ctx, mention("m1"))
	require.NoError(t, err)
	require.Equal(t, []grant.Delivery{grant.Push, grant.Poll}, []grant.Delivery{got[0].Deliver, got[1].Deliver})
}

// matches says whether a trigger with this Match takes the event.
func matches(t testing.TB, m grant.Match, ev grant.Event) bool {
	t.Helper()
	w := newWorld(t, func(c *grant.Config) {
		c.Triggers = []grant.Trigger{{App: "bookbot", On: ev.Operation, In: "*", Match: m, Allow: []string{"message.write"}, Consent: grant.Implied}}
	})
	ev.ID, ev.Account, ev.Domain = "1", "zhang-san", group
	got, err := w.Emit(ctx, ev)
	require.NoError(t, err)
	return len(got) == 1
}

func TestKeywords(t *testing.T) {
	for _, tc := range []struct {
		keyword, text string
		want          bool
	}{
		{"book", "book", true},
		{"book", "", false},
		{"book", "boo", false},
		{"book", "a book", true},
		{"book", "a book!", true},
		{"book", "(book)", true},
		{"book", "BOOK now", true},
		{"BOOK", "a book", true},
		{"  book ", "a book", true},
		{"book", "books", false},
		{"book", "ebook", false},
		{"book", "e-book", true},
		{"book", "book2", false},
		{"book", "book_shelf", false},
		{"book", "bo ok", false},
		{"book", "ebook and book", true},
		{"book", "books books book", true},
		{"book me", "please book me a room", true},
		{"book me", "please book  me a room", false},
		{"book me", "book men", false},
		{"#1", "you are #1", true},
		{"#1", "you are #12", false},
		{"#1", "you are a#1", true},
		{"c++", "I like C++.", true},
		{"c++", "I like C+++", true},
		{"a a b", "a a a b", true},
		// No spaces between words: anywhere.
		{"订书", "我要订书谢谢", true},
		{"订书", "我要订 书谢谢", false},
		{"书", "我要一本book", false},
		{"book", "我要book谢谢", true},
		{"book", "我要books谢谢", false},
		{"予約", "明日の予約をお願いします", true},
		{"メニュー", "メニューをください", true},
		{"メニュ", "メニューをください", true},
		{"メニュー", "メニューA", true},
		{"จอง", "ขอจองโต๊ะ", true},
		// Scripts with spaces.
		{"книга", "Моя КНИГА.", true},
		{"книга", "книгами", false},
		{"ΒΙΒΛΙΟΣ", "ο βιβλιος", true}, // a final sigma
		{"βιβλιοσ", "ΒΙΒΛΙΟΣ", true},
		{"straße", "STRAẞE 5", true},
		{"책", "책 주세요", true},
		{"책", "책을 주세요", false},
		{"café", "un CAFÉ noir", true},
		{"cafe", "un cafe\u0301 noir", false}, // an accent goes on with the word
		{"कर", "काम कर दो", true},
		{"कर", "काम करो", false},
		{"k", "\u212a", true}, // the Kelvin sign is a K, of another length
		{"\u212a", "k", true},
		{"kk", "x\u212a\u212ax k\u212a", true},
		// Emoji are no letters.
		{"📚", "read📚now", true},
		{"👍", "👍🏽", true},
		{"ok", "ok👍", true},
	} {
		require.Equal(t, tc.want, matches(t, grant.Match{Keywords: []string{"never said", tc.keyword}}, grant.Event{Operation: grant.MessagePost, Text: tc.text}),
			"keyword %q in %q", tc.keyword, tc.text)
		// The same where another field leads to the trigger.
		require.Equal(t, tc.want, matches(t, grant.Match{Keywords: []string{tc.keyword, "nor this"}, Target: "x"}, grant.Event{Operation: grant.MessagePost, Text: tc.text, Target: "x"}),
			"keyword %q in %q with a target", tc.keyword, tc.text)
	}
}

func TestCommand(t *testing.T) {
	for _, tc := range []struct {
		command, target string
		want            bool
	}{
		{"/book", "/book", true},
		{"book", "/book", true},
		{"/book", "book", true},
		{"/book", "/Book", false},
		{"/book", "/books", false},
		{"/book", "/book now", false},
		{"/book", "//book", false},
		{"/book", "", false},
		{"/book", "/", false},
		{"/订书", "/订书", true},
		{"//book", "//book", true},
		{"//book", "/book", false}, // one "/" does not count, on either side
	} {
		require.Equal(t, tc.want, matches(t, grant.Match{Command: tc.command}, grant.Event{Operation: grant.Command, Target: tc.target}), "%q %q", tc.command, tc.target)
	}
	require.False(t, matches(t, grant.Match{Command: "book", Target: "book"}, grant.Event{Operation: grant.Command, Target: "/book"}), "all fields must agree")
	require.True(t, matches(t, grant.Match{Command: "book", Target: "/book"}, grant.Event{Operation: grant.Command, Target: "/book"}))
}

func TestLinkPrefix(t *testing.T) {
	const prefix = "https://bookbot.example/b/"
	for target, want := range map[string]bool{
		"https://bookbot.example/b/":                    true,
		"https://bookbot.example/b/1?x=y#z":             true,
		"https://bookbot.example/b":                     false,
		"https://bookbot.example/":                      false,
		"https://bookbot.example":                       false,
		"http://bookbot.example/b/1":                    false,
		"https://bookbot.example.evil.test/b/1":         false,
		"https://bookbot.exampleevil.test/b/1":          false,
		"https://evil.test/https://bookbot.example/b/1": false,
		"https://evil.test/?https://bookbot.example/b/": false,
		"https://bookbot.example@evil.test/b/1":         false,
		"https://bookbot.example:443@evil.test/b/1":     false,
		"https://user@bookbot.example/b/1":              false,
		"https://evil.test#@bookbot.example/b/1":        false,
		`https://bookbot.example\@evil.test/b/1`:        false,
		"https://bookbot.example:8443/b/1":              false,
		"https://bookbot.example./b/1":                  false,
		"HTTPS://BOOKBOT.EXAMPLE/b/1":                   false, // by bytes: no grant is safer than a wrong one
		"https://Bookbot.example/b/1":                   false,
		"//bookbot.example/b/1":                         false,
		"bookbot.example/b/1":                           false,
		" https://bookbot.example/b/1":                  false,
		"https:/bookbot.example/b/1":                    false,
		"https://bookbot.example/B/1":                   false,
		"":                                              false,
	} {
		require.Equal(t, want, matches(t, grant.Match{LinkPrefix: prefix}, grant.Event{Operation: grant.LinkOpen, Target: target}), target)
	}
	require.True(t, matches(t, grant.Match{LinkPrefix: "https://bookbot.example/?b="}, grant.Event{Operation: grant.LinkOpen, Target: "https://bookbot.example/?b=1"}))
	require.True(t, matches(t, grant.Match{LinkPrefix: "http://[::1]:8080/"}, grant.Event{Operation: grant.LinkOpen, Target: "http://[::1]:8080/x"}))
}

func TestLinkPrefixesWithin(t *testing.T) {
	w := newWorld(t, func(c *grant.Config) {
		c.Triggers = nil
		for i, prefix := range []string{"https://a.example/", "https://a.example/b", "https://a.example/b", "https://a.example/b/c", "https://a.example/b0", "https://a.example/z"} {
			c.Triggers = append(c.Triggers, grant.Trigger{ID: fmt.Sprint(i, prefix[17:]), App: []string{"bookbot", "weather"}[i%2], On: grant.LinkOpen, In: "*",
				Match: grant.Match{LinkPrefix: prefix}, Allow: []string{"message.write"}})
		}
	})
	for target, want := range map[string][]string{
		"":      {"0/"},
		"b":     {"0/", "1/b", "2/b"},
		"b/":    {"0/", "1/b", "2/b"},
		"b/c?d": {"0/", "1/b", "2/b", "3/b/c"},
		"b/d":   {"0/", "1/b", "2/b"},
		"b0":    {"0/", "1/b", "2/b", "4/b0"},
		"zz":    {"0/", "5/z"},
		"y":     {"0/"},
	} {
		got, err := w.Emit(ctx, grant.Event{ID: "to " + target, Operation: grant.LinkOpen, Account: "zhang-san", Domain: group, Target: "https://a.example/" + target})
		require.NoError(t, err)
		var ids []string
		for _, g := range got {
			ids = append(ids, g.Trigger)
		}
		require.ElementsMatch(t, want, ids, target)
	}
}

func TestAt(t *testing.T) {
	w := newWorld(t, func(c *grant.Config) {
		c.Triggers[0].At, c.Triggers[0].In = "group", "*"
	})
	for in, want := range map[string]string{
		"group:42":                                "group:42",
		"group:42/thread:7":                       "group:42",
		"space:1/group:42/thread:7":               "space:1/group:42",
		"group:1/group:2/thread:7":                "group:1/group:2", // the nearest
		"space:group/group:a%2Fb/thread:7/post:1": "space:group/group:a%2Fb",
	} {
		ev := mention(in)
		ev.Domain = scope.MustDomain(in)
		g := w.emit(ev)
		require.Equal(t, want, g.Domain.String())
		require.Equal(t, in, g.Event.Domain.String())
		require.Equal(t, want+"/message.write", g.Scope().String())
		_, err := w.Use(ctx, w.redeem(g), scope.MustParse(want+"/thread:other/message.write"))
		require.NoError(t, err)
	}
	for _, in := range []string{"direct:1", "direct:1/thread:7", "groups:42", "direct:group"} {
		ev := mention(in)
		ev.Domain = scope.MustDomain(in)
		w.store.reset()
		_, err := w.Emit(ctx, ev)
		require.ErrorIs(t, err, grant.ErrInvalid, in)
		require.ErrorContains(t, err, in)
		require.Zero(t, w.store.total())
	}
}

// One trigger's trouble is not another's.
func TestSomeTriggersFail(t *testing.T) {
	w := newWorld(t, func(c *grant.Config) {
		at, denied := onMention(), onMention()
		at.ID, at.At = "at", "planet"
		denied.ID, denied.Allow = "denied", []string{"member.read"}
		c.Triggers = append(c.Triggers, at, denied)
	})
	w.setPermit(allow("message.write"))
	got, err := w.Emit(ctx, mention("m1"))
	require.Len(t, got, 1)
	require.Equal(t, "mention", got[0].Trigger)
	require.ErrorIs(t, err, grant.ErrInvalid)
	require.ErrorIs(t, err, grant.ErrDenied)
	require.ErrorContains(t, err, "trigger at:")
	require.ErrorContains(t, err, "trigger denied:")
}

func TestPerMinute(t *testing.T) {
	w := newWorld(t, func(c *grant.Config) { c.Triggers[0].PerMinute = 3 })
	nodes := w.nodes()
	n := 0
	round := func() int {
		n++
		errs := together(64, func(i int) error {
			_, err := nodes[i%2].Emit(ctx, mention(fmt.Sprint(n, "-", i)))
			return err
		})
		return winners(t, errs, grant.ErrLimited)
	}
	w.clock.set(start.Truncate(time.Minute))
	require.Equal(t, 3, round())
	require.Zero(t, round())
	li := mention("li")
	li.Account = "li-si"
	w.emit(li) // of another account
	w.clock.advance(time.Minute - time.Microsecond)
	require.Zero(t, round())
	w.clock.advance(time.Microsecond)
	require.Equal(t, 3, round())
	require.Equal(t, map[string]int{"issued": 6, "refused": 3*64 + 64 - 6}, w.whats("zhang-san"))
	for _, e := range w.ledger("zhang-san") {
		if e.What == "refused" {
			require.Equal(t, "limited", e.Reason)
		}
	}
	// What was refused may be emitted again later.
	w.clock.advance(time.Minute)
	require.Equal(t, "issued", w.emit(mention("2-0")).State)
}

func TestEventFaults(t *testing.T) {
	w := newWorld(t, func(c *grant.Config) { c.Triggers[0].In = "*" })
	ok := mention("m1")
	ok.Text, ok.Target = strings.Repeat("\x01", 64<<10), strings.Repeat("t", 2048)
	ok.ID, ok.Account = strings.Repeat("i", 256), strings.Repeat("a", 256)
	ok.Data = map[string]string{"k": strings.Repeat("\u2028", (16<<10)/3)}
	ok.At = start.Add(-time.Hour)
	require.Equal(t, "issued", w.emit(ok).State, "as large and as late as can be")
	w.store.reset()
	for name, change := range map[string]func(*grant.Event){
		"ID has 0":         func(ev *grant.Event) { ev.ID = "" },
		"ID has 257":       func(ev *grant.Event) { ev.ID = strings.Repeat("i", 257) },
		"account has 0":    func(ev *grant.Event) { ev.Account = "" },
		"account has 257":  func(ev *grant.Event) { ev.Account = strings.Repeat("a", 257) },
		"text has":         func(ev *grant.Event) { ev.Text = strings.Repeat("t", 64<<10+1) },
		"target has":       func(ev *grant.Event) { ev.Target = strings.Repeat("t", 2049) },
		"data is larger":   func(ev *grant.Event) { ev.Data = map[string]string{"k": strings.Repeat("v", 16<<10)} },
		"not UTF-8":        func(ev *grant.Event) { ev.ID = "\xff" },
		"is not UTF-8":     func(ev *grant.Event) { ev.Account = "\xff" },
		"event is not":     func(ev *grant.Event) { ev.Text = "\xff" },
		"event is not U":   func(ev *grant.Event) { ev.Target = "\xff" },
		"data is not":      func(ev *grant.Event) { ev.Data = map[string]string{"\xff": ""} },
		"data is not U":    func(ev *grant.Event) { ev.Data = map[string]string{"a": "\xff"} },
		"older than":       func(ev *grant.Event) { ev.At = start.Add(-time.Hour - time.Microsecond) },
		"older than 1h":    func(ev *grant.Event) { ev.At = time.Unix(0, 0) },
		"ahead of":         func(ev *grant.Event) { ev.At = start.Add(time.Minute + time.Microsecond) },
		"ahead of the":     func(ev *grant.Event) { ev.At = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC) },
		"a domain":         func(ev *grant.Event) { ev.Domain = scope.Domain{} },
		"operation and":    func(ev *grant.Event) { ev.Operation = "" },
		"names an app":     func(ev *grant.Event) { ev.App = "" },
		"mention names an": func(ev *grant.Event) { ev.App, ev.Domain = "", scope.MustDomain("nowhere:1") },
	} {
		ev := mention("m2")
		change(&ev)
		got, err := w.Emit(ctx, ev)
		require.ErrorIs(t, err, grant.ErrInvalid, name)
		require.ErrorContains(t, err, strings.TrimSuffix(name, " U"))
		require.Less(t, len(err.Error()), 300)
		require.Empty(t, got)
	}
	require.Zero(t, w.store.total())
	// A domain that is too long for the scope of an action.
	ev := mention("m3")
	ev.Domain = scope.MustDomain("group:" + strings.Repeat("a", 256))
	for range 3 {
		child, err := ev.Domain.Child("thread", strings.Repeat("b", 240))
		require.NoError(t, err)
		ev.Domain = child
	}
	for id, ok := range map[string]bool{"y": true, "yy": false} { // a scope has at most 1024 bytes
		long, err := ev.Domain.Child("x", id)
		require.NoError(t, err)
		last := ev
		last.ID, last.Domain = id, long
		if ok {
			g := w.emit(last)
			require.Len(t, g.Scope().String(), 1024)
			continue
		}
		w.store.reset()
		_, err = w.Emit(ctx, last)
		require.ErrorIs(t, err, grant.ErrInvalid)
		require.Zero(t, w.store.total())
	}
}

func TestConfigFaults(t *testing.T) {
	good := newWorld(t, nil).config
	t.Run("all of them at once", func(t *testing.T) {
		_, err := grant.NewEngine(grant.Config{
			KeepLedger: -1,
			Sealing:    []grant.Secret{key, key, grant.NewSecret("short")},
			Apps: []grant.App{{ID: "a b"}, {ID: "twice"}, {ID: "twice"}, {ID: strings.Repeat("x", 65)}, {},
				{ID: "acts", Actions: []string{"message.erase", "message.write", "message.write"}, Deliver: "pigeon"}},
			Triggers: []grant.Trigger{
				{ID: strings.Repeat("i", 257)}, {ID: "\xff"},
				{ID: "bad", App: "nobody", On: "Mention!", In: "group:{group}", Allow: []string{"message.erase", "file.write", "file.write"}, At: "a:b",
					For: -time.Second, Uses: -2, RedeemWithin: -time.Second, Consent: "maybe", Deliver: "pigeon", PerMinute: -1,
					Match: grant.Match{Keywords: append(slices.Repeat([]string{"k"}, 100), "\xff", ""), Command: "/", LinkPrefix: "https://bookbot.example"}},
				{ID: "in", App: "acts", On: "mention", In: "group:{group}/message.write", Allow: []string{"message.write"}},
				{ID: "most", App: "acts", On: "mention", In: "*", Allow: slices.Repeat([]string{"message.write"}, 33), PerMinute: 1_000_001},
				{ID: "same", App: "acts", On: "mention", In: "*", Allow: []string{"message.write"}},
				{ID: "same", App: "acts", On: "mention", In: "*", Allow: []string{"message.write"}},
			},
		})
		require.ErrorIs(t, err, grant.ErrInvalid)
		for _, line := range strings.Split(err.Error(), "\n") {
			require.Less(t, len(line), 400)
		}
		for _, want := range []string{
			"Store is required", "Permit is required", "KeepLedger is negative", "Key has 0 bytes", "Sealing[1] is a repeated key", "Sealing[2] has 5 bytes",
			`app "a b"`, `app "twice" is there twice`, `app "xxx`, `app ""`, `app "acts": the catalog has no action "message.erase"`,
			`app "acts": action "message.write" is there twice`, `delivery "pigeon"`,
			`id: has 257 bytes`, `id: has 1 bytes`, `trigger "bad": app: no app has the ID "nobody"`, `trigger "bad": on: `, `trigger "bad": in: `,
			`trigger "bad": allow: the catalog has no action "message.erase"`, `trigger "bad": allow: names an action twice`, `trigger "bad": at: "a:b"`,
			`trigger "bad": for: -1s`, `trigger "bad": uses: -2`, `trigger "bad": redeem_within: -1s`, `trigger "bad": consent: "maybe"`, `trigger "bad": deliver: "pigeon"`,
			`trigger "bad": per_minute: -1`, `trigger "bad": match.keywords: 102`, `match.keywords: "\xff"`, `match.command: "/"`,
			`trigger "bad": match.link_prefix`, `trigger "in": in: `, `trigger "most": allow: names 33 actions`, `trigger "most": per_minute`, `trigger "same" is there twice`,
		} {
			require.ErrorContains(t, err, want)
		}
		var joined interface{ Unwrap() []error }
		require.ErrorAs(t, err, &joined)
		for _, one := range joined.Unwrap() {
			require.ErrorIs(t, one, grant.ErrInvalid, "each of them")
		}
	})
	t.Run("link prefixes", func(t *testing.T) {
		for prefix, ok := range map[string]bool{
			"https://bookbot.example/":            true,
			"https://bookbot.example/b":           true,
			"http://127.0.0.1:8080/x?y=":          true,
			"https://bookbot.example":             false,
			"https://bookbot.example?x":           false,
			"https://bookbot.example#/":           false,
			"https:///path":                       false,
			"https://:443/path":                   false,
			"https://user@bookbot.example/":       false,
			"https://user:pass@bookbot.example/":  false,
			"https://bookbot.example%2F.evil/":    false,
			"ftp://bookbot.example/":              false,
			"javascript:alert(1)":                 false,
			"//bookbot.example/":                  false,
			"/path":                               false,
			"HTTPS://bookbot.example/":            false,
			"https://BookBot.example/":            false,
			"https://bookbot.example/Path":        true,
			"https://bookbot.example/%zz":         false,
			" https://bookbot.example/":           false,
			"https://bookbot.example\n/":          false,
			"https:bookbot.example/":              false,
			"https://bookbot.example:port/":       false,
			"https://book\\bot.example/":          false,
			"https://bookbot.example/\x00":        false,
			"https://[::1]/":                      true,
			"https://[::1/":                       false,
			"https://xn--bcher-kva.example/":      true,
			"https://bookbot.example/a/../b?x#yz": true,
		} {
			c := good
			c.Triggers = []grant.Trigger{{App: "bookbot", On: grant.LinkOpen, In: "*", Allow: []string{"message.write"}, Match: grant.Match{LinkPrefix: prefix}}}
			_, err := grant.NewEngine(c)
			if ok {
				require.NoError(t, err, prefix)
			} else {
				require.ErrorIs(t, err, grant.ErrInvalid, prefix)
				require.ErrorContains(t, err, "match.link_prefix")
			}
		}
	})
	t.Run("edges", func(t *testing.T) {
		for _, change := range []func(*grant.Trigger){
			func(t *grant.Trigger) { t.For, t.Uses, t.RedeemWithin = 7*24*time.Hour, 1_000_000, time.Hour },
			func(t *grant.Trigger) { t.For, t.Uses, t.RedeemWithin = time.Second, 1, time.Second },
			func(t *grant.Trigger) { t.Uses, t.PerMinute = grant.Unlimited, 1_000_000 },
			func(t *grant.Trigger) { t.Deliver, t.RedeemWithin = grant.Redirect, time.Minute },
			func(t *grant.Trigger) { t.ID = strings.Repeat("i", 256) },
			func(t *grant.Trigger) { t.In = "group:%7Ba%7D/thread:*" },
			func(t *grant.Trigger) { t.Match.Keywords = slices.Repeat([]string{strings.Repeat("k", 256)}, 100) },
			func(t *grant.Trigger) { t.ID = "" },
		} {
			c, trigger := good, onMention()
			change(&trigger)
			c.Triggers = []grant.Trigger{trigger}
			_, err := grant.NewEngine(c)
			require.NoError(t, err)
		}
	})
	t.Run("nothing of the caller's is kept", func(t *testing.T) {
		actions, allow, words := []string{"message.write"}, []string{"message.write"}, []string{"book"}
		w := newWorld(t, func(c *grant.Config) {
			c.Apps = []grant.App{{ID: "bookbot", Actions: actions}}
			c.Triggers = []grant.Trigger{{App: "bookbot", On: grant.MessagePost, In: "*", Allow: allow, Match: grant.Match{Keywords: words}, Consent: grant.Implied}}
		})
		actions[0], allow[0], words[0] = "file.write", "file.write", "x"
		g := w.emit(grant.Event{ID: "1", Operation: grant.MessagePost, Account: "zhang-san", Domain: group, Text: "book"})
		_, err := w.Use(ctx, w.redeem(g), write)
		require.NoError(t, err)
	})
}

const triggerJSON = `{
	"id": "t1", "app": "bookbot", "on": "message.post", "in": "group:*/thread:*",
	"match": {"keywords": ["book", "订书"], "command": "/book", "link_prefix": "https://bookbot.example/", "target": "x"},
	"allow": ["message.write", "member.read"], "at": "group", "for": "10m0s", "uses": 3, "redeem_within": "30s",
	"consent": "once", "deliver": "push", "chain": true, "per_minute": 7
}`

func TestTriggerJSON(t *testing.T) {
	t.Run("there and back", func(t *testing.T) {
		full := grant.Trigger{ID: "t1", App: "bookbot", On: grant.MessagePost, In: "group:*/thread:*",
			Match: grant.Match{Keywords: []string{"book", "订书"}, Command: "/book", LinkPrefix: "https://bookbot.example/", Target: "x"},
			Allow: []string{"message.write", "member.read"}, At: "group", For: 10 * time.Minute, Uses: 3, RedeemWithin: 30 * time.Second,
			Consent: grant.Once, Deliver: grant.Push, Chain: true, PerMinute: 7}
		var got grant.Trigger
		require.NoError(t, json.Unmarshal([]byte(triggerJSON), &got))
		require.Equal(t, full, got)
		text, err := json.Marshal(full)
		require.NoError(t, err)
		require.JSONEq(t, triggerJSON, string(text))

		small := grant.Trigger{App: "bookbot", On: grant.Mention, In: "*", Allow: []string{"message.write"}}
		text, err = json.Marshal(small)
		require.NoError(t, err)
		require.Equal(t, `{"app":"bookbot","on":"mention","in":"*","allow":["message.write"]}`, string(text))
		got = full // what is there before is replaced, not mixed
		require.NoError(t, json.Unmarshal(text, &got))
		require.Equal(t, small, got)

		// The example of the wire.
		var list struct{ Triggers []grant.Trigger }
		require.NoError(t, json.Unmarshal([]byte(`{"triggers": [{"id": "probe-mention", "app": "probe", "on": "mention", "in": "group:*",
			"allow": ["message.write"], "for": "10m", "uses": 3, "redeem_within": "60s", "deliver": "poll"}]}`), &list))
		require.Equal(t, grant.Trigger{ID: "probe-mention", App: "probe", On: grant.Mention, In: "group:*", Allow: []string{"message.write"},
			For: 10 * time.Minute, Uses: 3, RedeemWithin: time.Minute, Deliver: grant.Poll}, list.Triggers[0])
	})
	for text, want := range map[string]string{
		`{"app":"a","aap":"b"}`:                 `unknown field "aap"`,
		`{"match":{"keyword":["x"]}}`:           `unknown field "keyword"`,
		`{"App":"a"}`:                           `unknown field "App"`,
		`{"match":{"Target":"a"}}`:              `unknown field "match.Target"`,
		`{"uſes":3}`:                            `unknown field "uſes"`,
		`{"uses":3,"uses":4}`:                   `field "uses" is there twice`,
		`{"match":{"target":"a","target":"b"}}`: `field "match.target" is there twice`,
		`{"uses":0}`:                            `field "uses": 0 is no number of uses`,
		`{"uses":"3"}`:                          `field "uses": a string is not a int`,
		`{"uses":1.5}`:                          `field "uses"`,
		`{"uses":99999999999999999999}`:         `field "uses"`,
		`{"allow":"message.write"}`:             `field "allow"`,
		`{"allow":[1]}`:                         `field "allow"`,
		`{"match":[]}`:                          `field "match"`,
		`{"match":{"keywords":"x"}}`:            `field "match.keywords"`,
		`{"chain":"yes"}`:                       `field "chain"`,
		`{"for":600}`:                           `field "for": a number is not a string`,
		`{"for":""}`:                            `field "for": "" is not a duration`,
		`{"for":"600"}`:                         `field "for": "600" is not a duration`,
		`{"for":"-10m"}`:                        `field "for": "-10m" is not a duration above zero`,
		`{"for":"0s"}`:                          `field "for"`,
		`{"for":"10 m"}`:                        `field "for"`,
		`{"for":"9999999h"}`:                    `field "for"`,
		`{"redeem_within":"1 minute"}`:          `field "redeem_within"`,
		`{"redeem_within":"` + strings.Repeat("x", 9999) + `"}`: `field "redeem_within"`,
		`[]`: `a array is not a`,
		`7`:  `a number is not a`,
	} {
		got := grant.Trigger{ID: "before"}
		err := json.Unmarshal([]byte(text), &got)
		require.ErrorIs(t, err, grant.ErrInvalid, text)
		require.ErrorContains(t, err, want)
		require.Less(t, len(err.Error()), 300)
		require.Equal(t, grant.Trigger{ID: "before"}, got, "on an error it stays as it was")
	}
	for _, text := range []string{``, `{`, `{"app":}`, `{} {}`, `{}x`, "{\"app\":\"\xff\x00\"}", strings.Repeat(`{"match":`, 20000)} {
		var got grant.Trigger
		require.Error(t, json.Unmarshal([]byte(text), &got), "%.20q", text)
		require.ErrorIs(t, got.UnmarshalJSON([]byte(text)), grant.ErrInvalid, "%.20q", text)
	}
	require.ErrorIs(t, (&grant.Trigger{}).UnmarshalJSON([]byte(`{} {}`)), grant.ErrInvalid)
}

// The longest that configuration and events can make it, a token can be redeemed and used.
func TestLongestToken(t *testing.T) {
	var actions []scope.Action
	var names []string
	for n := 900; n > 64; n -= 65 {
		names = append(names, fmt.Sprintf("a%02d", len(names))+strings.Repeat("x", 61))
	}
	rest := 900 - (65*len(names) - 1)
	if rest > 2 {
		names = append(names, strings.Repeat("z", rest-1))
	}
	require.Len(t, strings.Join(names, " "), 900)
	for _, n := range names {
		actions = append(actions, scope.Action{Name: n, Words: map[string]string{"en": "x"}})
	}
	catalog, err := scope.NewCatalog(actions...)
	require.NoError(t, err)
	app := strings.Repeat("a", 64)
	operation := grant.Operation(strings.Repeat("o", 64))
	w := newWorld(t, func(c *grant.Config) {
		c.Catalog, c.Apps = catalog, []grant.App{{ID: app, Actions: names}}
		c.Triggers = []grant.Trigger{{ID: strings.Repeat("t", 256), App: app, On: operation, In: "*", Allow: names, Uses: 1_000_000, For: 7 * 24 * time.Hour, Consent: grant.Implied}}
	})
	domain := scope.MustDomain("k:" + strings.Repeat("a", 256))
	for len(domain.String()) < 1024-66 {
		domain, err = domain.Child("k", strings.Repeat("b", min(256, 1024-65-len(domain.String())-3)))
		require.NoError(t, err)
	}
	g := w.emit(grant.Event{ID: strings.Repeat("e", 256), Operation: operation, Account: strings.Repeat("u", 256), Domain: domain})
	token := w.redeem(g)
	require.Greater(t, len(token), 3500)
	require.LessOrEqual(t, len(token), 4096)
	want, err := scope.New(domain, names[0])
	require.NoError(t, err)
	d, err := w.Use(ctx, token, want)
	require.NoError(t, err)
	require.Equal(t, g.Scope(), d.Granted())

	// And so can one that is bound, names all that may have it, and came through all their hands.
	w = newWorld(t, func(c *grant.Config) {
		c.Catalog, c.Apps = catalog, []grant.App{{ID: app, Actions: names}}
		c.Triggers = []grant.Trigger{{ID: strings.Repeat("t", 256), App: app, On: operation, In: "*", Allow: names, Uses: 1_000_000, For: 7 * 24 * time.Hour, Consent: grant.Implied, DeriveDepth: 8}}
		for i := range 8 {
			id := strings.Repeat(fmt.Sprint(i), 64)
			c.Apps, c.Triggers[0].Delegates = append(c.Apps, grant.App{ID: id, Actions: names}), append(c.Triggers[0].Delegates, id)
		}
	})
	g = w.emit(grant.Event{ID: strings.Repeat("e", 256), Operation: operation, Account: strings.Repeat("u", 256), Domain: domain})
	bound := strings.Repeat("k", 128)
	token = w.bind(g, bound)
	for i := range 8 {
		_, token = w.derive(strings.Repeat(fmt.Sprint(i), 64), token, grant.Grant{})
	}
	require.Greater(t, len(token), 6000)
	require.LessOrEqual(t, len(token), 8192-1024, "a server that reads 8 KiB of header has room for others")
	d, err = w.UseBound(ctx, token, w.holds(bound, "1"), func() (scope.Scope, error) { return want, nil })
	require.NoError(t, err)
	require.Len(t, d.Actors(), 9)

	c := w.config
	c.Catalog, err = scope.NewCatalog(append(actions, scope.Action{Name: "one.more", Words: map[string]string{"en": "x"}})...)
	require.NoError(t, err)
	names = append(names, "one.more")
	c.Apps, c.Triggers = []grant.App{{ID: app, Actions: names}}, slices.Clone(c.Triggers)
	c.Triggers[0].Allow = names
	_, err = grant.NewEngine(c)
	require.ErrorIs(t, err, grant.ErrInvalid, "at start, and not when somebody redeems")
}

func TestNames(t *testing.T) {
	w := newWorld(t, func(c *grant.Config) { c.Apps = append(c.Apps, grant.App{ID: "inside", RealNames: true}) })
	name := w.Name("bookbot", "zhang-san")
	require.Len(t, name, 22)
	require.Equal(t, name, w.another().Name("bookbot", "zhang-san"), "on all nodes")
	require.NotEqual(t, name, w.Name("weather", "zhang-san"), "apps cannot compare notes")
	require.NotEqual(t, name, w.Name("bookbot", "li-si"))
	require.Equal(t, "zhang-san", w.Name("inside", "zhang-san"))
	require.Empty(t, w.Name("nobody", "zhang-san"))
	require.Empty(t, w.Name("bookbot", ""))
	w.config.Sealing = []grant.Secret{grant.NewSecret(strings.Repeat("n", 32))}
	require.Equal(t, name, w.another().Name("bookbot", "zhang-san"), "rotating the sealing keys changes no name")
	// A golden value: what apps know users by never changes.
	require.Equal(t, "ODDyHRLclqemNW-hAKuu7Q", name)
}

// Identifiers that come from people and apps reach no other kind of record, and are no surprise of the store's.
func TestCraftedIDs(t *testing.T) {
	w := newWorld(t, nil)
	g := w.emit(mention("m1"))
	li := mention("m1")
	li.Account = "li-si"
	other := w.emit(li)
	aggregate := store.Aggregate(w.store.ofKind(t, "grant")[0].ID)
	name := g.ID[:22] // and then the app
	crafted := []string{name, name + "-", name + "-weather", name + "-BookBot", name + "-bookbot.", name + "-book.bot", name + "-book\x00bot", name + "~bookbot",
		name + "-" + strings.Repeat("b", 64), name + "-" + strings.Repeat("b", 65), other.ID[:22] + "-bookbot", "-bookbot", strings.ToUpper(g.ID)}
	for _, id := range append(crafted, "", ".", "all", "x.y", g.ID+".", "."+g.ID, g.ID[:21], g.ID+"x", "e"+g.ID, aggregate+"."+g.ID, other.ID,
		strings.Repeat("a", 22), strings.Repeat(".", 22), "a."+g.ID[2:], strings.Repeat("a", 5000), strings.Repeat("a", 1<<20), "\x00", "\xff", strings.Repeat("\x00", 22)) {
		for name, err := range map[string]error{
			"revoke": w.Revoke(ctx, "zhang-san", id),
			"decide": func() error { _, err := w.Decide(ctx, "zhang-san", id, true); return err }(),
		} {
			require.ErrorIs(t, err, grant.ErrUnknown, "%s %.30q", name, id)
			require.False(t, errors.Is(err, store.ErrInvalid))
			require.Less(t, len(err.Error()), 100)
		}
	}
	for _, account := range []string{"", ".", "li-si.", strings.Repeat("a", 5000), "\xff", aggregate} {
		require.ErrorIs(t, w.Revoke(ctx, account, g.ID), grant.ErrUnknown)
		_, err := w.Decide(ctx, account, g.ID, true)
		require.ErrorIs(t, err, grant.ErrUnknown)
	}
	require.Empty(t, w.store.ofKind(t, "revocation"))
	require.Equal(t, map[string]int{"issued": 1}, w.whats("zhang-san"), "what is not there is not on record")
	for _, bad := range []string{"", strings.Repeat("a", 257), "\xff"} {
		require.ErrorIs(t, w.RevokeAccount(ctx, bad), grant.ErrInvalid)
		require.ErrorIs(t, w.RevokeApp(ctx, bad, "bookbot", group), grant.ErrInvalid)
		require.ErrorIs(t, w.RevokeApp(ctx, "zhang-san", bad, group), grant.ErrInvalid)
	}
	require.ErrorIs(t, w.RevokeApp(ctx, "zhang-san", "bookbot", scope.Domain{}), grant.ErrInvalid)
	_, err := w.Grants(ctx, "", "", true)
	require.ErrorIs(t, err, grant.ErrInvalid)
	for _, page := range []struct {
		account, before string
		limit           int
	}{{"", "", 1}, {"zhang-san", "", -1}, {"zhang-san", "", 1001}, {"zhang-san", strings.Repeat("x", 5000), 1}} {
		_, err := w.Ledger(ctx, page.account, page.before, page.limit)
		require.ErrorIs(t, err, grant.ErrInvalid)
	}
	for _, before := range []string{"x", ".", "\x00", "zzzz", "."} {
		got, err := w.Ledger(ctx, "zhang-san", before, 10)
		require.NoError(t, err)
		for _, e := range got {
			require.Equal(t, "zhang-san", e.Account)
		}
	}

	// Accounts and events with the characters that separate, and all others.
	for i, weird := range []string{"a.b", "a/b", "a:b", "a b", "a\x00b", "a\nb", `"`, "<", "用户", "\u2028", ".", "..", "%2e"} {
		ev := mention(weird)
		ev.Account, ev.Text = weird, weird
		g := w.emit(ev)
		d, err := w.Use(ctx, w.redeem(g), write)
		require.NoError(t, err)
		require.Equal(t, weird, d.Account)
		require.Equal(t, weird, d.Event)
		list, err := w.Grants(ctx, weird, "", false)
		require.NoError(t, err)
		require.Len(t, list, 1, "%d", i)
		require.Equal(t, weird, list[0].Event.Text)
		entries := w.ledger(weird)
		require.Len(t, entries, 3)
		require.Equal(t, weird, entries[0].Account)
		require.NoError(t, w.Revoke(ctx, weird, g.ID))
	}
}
