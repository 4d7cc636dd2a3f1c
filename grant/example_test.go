package grant_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// engine returns what the examples have in common: one app and these triggers, on a store of its own.
func engine(triggers ...grant.Trigger) *grant.Engine {
	e, err := grant.NewEngine(grant.Config{
		Store:    store.NewMemory(),
		Key:      grant.NewSecret(strings.Repeat("k", 32)), // 32 bytes from crypto/rand, in earnest
		Permit:   func(context.Context, grant.Access) error { return nil },
		Apps:     []grant.App{{ID: "bookbot", Name: "BookBot", Actions: []string{"message.write", "member.read"}}},
		Triggers: triggers,
	})
	if err != nil {
		panic(err)
	}
	return e
}

func Example() {
	ctx := context.Background()
	group := scope.MustDomain("group:42")
	e := engine(grant.Trigger{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, Uses: 2})

	// The social server saw Zhang San mention BookBot.
	grants, err := e.Emit(ctx, grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", App: "bookbot", Domain: group})
	if err != nil {
		panic(err)
	}
	// BookBot's server redeems the code that it was sent.
	_, token, err := e.Redeem(ctx, "bookbot", grants[0].Code)
	if err != nil {
		panic(err)
	}
	// And calls the API of the social server.
	for _, want := range []string{"group:42/message.write", "group:43/message.write", "group:42/thread:7/message.write", "group:42/message.write"} {
		d, err := e.Use(ctx, token.Reveal(), scope.MustParse(want))
		if err != nil {
			fmt.Println(want, "refused:", grant.Reason(err))
			continue
		}
		fmt.Println(want, "by", d.Account, "via", d.App, "uses left:", d.Left)
	}
	_, _, err = e.Redeem(ctx, "bookbot", grants[0].Code)
	fmt.Println(err)
	// Output:
	// group:42/message.write by zhang-san via bookbot uses left: 1
	// group:43/message.write refused: wrong_domain
	// group:42/thread:7/message.write by zhang-san via bookbot uses left: 0
	// group:42/message.write refused: used_up
	// grant: used up: the code was redeemed before
}

func ExampleTrigger() {
	for _, t := range []grant.Trigger{
		{App: "bookbot", On: grant.Command, In: "group:*", Match: grant.Match{Command: "/book"}, Allow: []string{"message.write"}},
		{App: "bookbot", On: grant.LinkOpen, In: "*", Match: grant.Match{LinkPrefix: "https://bookbot.example/"}, Allow: []string{"member.read"}},
		// Weak evidence: one use, and the user is asked first.
		{App: "bookbot", On: grant.MessagePost, In: "group:42", Match: grant.Match{Keywords: []string{"book", "订书"}}, Allow: []string{"message.write"}},
		// An operation of the application's own, said in a thread and granted for the group.
		{App: "bookbot", On: "poll.vote", In: "group:*", At: "group", Allow: []string{"message.write"}, Consent: grant.Implied, For: 5 * time.Minute, Uses: 3},
	} {
		e := engine(t)
		ev := grant.Event{ID: "1", Operation: t.On, Account: "zhang-san", Domain: scope.MustDomain("group:42/thread:7")}
		ev.Target, ev.Text = t.Match.Command+t.Match.LinkPrefix, "A Book, please"
		grants, err := e.Emit(context.Background(), ev)
		if err != nil {
			panic(err)
		}
		g := grants[0]
		fmt.Printf("%s: %s, %v × %d, %s\n", g.Event.Operation, g.State, g.For, g.Uses, g.Scope())
	}
	// Output:
	// command: issued, 10m0s × 5, group:42/thread:7/message.write
	// link.open: issued, 1m0s × 1, group:42/thread:7/member.read
	// message.post: pending, 1m0s × 1, group:42/thread:7/message.write
	// poll.vote: issued, 5m0s × 3, group:42/message.write
}

func ExampleTrigger_UnmarshalJSON() {
	var t grant.Trigger
	err := json.Unmarshal([]byte(`{"app": "bookbot", "on": "mention", "in": "group:*", "allow": ["message.write"], "for": "10m", "uses": 3}`), &t)
	fmt.Println(t.App, t.On, t.In, t.For, t.Uses, err)
	fmt.Println(json.Unmarshal([]byte(`{"app": "bookbot", "us": 3}`), &t))
	fmt.Println(json.Unmarshal([]byte(`{"app": "bookbot", "for": 600}`), &t))
	// Output:
	// bookbot mention group:* 10m0s 3 <nil>
	// grant: invalid: trigger: unknown field "us"
	// grant: invalid: trigger field "for": a number is not a string
}

func ExampleNewEngine() {
	_, err := grant.NewEngine(grant.Config{
		Store:    store.NewMemory(),
		Key:      grant.NewSecret("too short"),
		Permit:   func(context.Context, grant.Access) error { return nil },
		Triggers: []grant.Trigger{{ID: "t1", App: "bookbot", On: grant.Mention, In: "group", Allow: []string{"message.write"}, Uses: 2_000_000}},
	})
	fmt.Println(err)
	// Output:
	// grant: invalid: Key has 9 bytes, want at least 32 of good randomness
	// grant: invalid: trigger "t1": app: no app has the ID "bookbot"
	// grant: invalid: trigger "t1": in: scope: invalid syntax: pattern "group": at offset 5: a segment is kind:id, and the ":" is missing
	// grant: invalid: trigger "t1": uses: 2000000 is not between 1 and 1000000, nor Unlimited (-1)
}

func ExampleEngine_Emit() {
	ctx := context.Background()
	e := engine(grant.Trigger{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}})
	ev := grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", App: "bookbot", Domain: scope.MustDomain("group:42"), Text: "@bookbot Dune"}

	first, err := e.Emit(ctx, ev)
	fmt.Println(len(first), err)
	again, err := e.Emit(ctx, ev) // a retry
	fmt.Println(again[0].ID == first[0].ID, again[0].Code.Reveal() == first[0].Code.Reveal(), err)
	ev.Text = "@bookbot Solaris"
	_, err = e.Emit(ctx, ev)
	fmt.Println(errors.Is(err, grant.ErrInvalid))
	none, err := e.Emit(ctx, grant.Event{ID: "m2", Operation: grant.MessagePost, Account: "zhang-san", Domain: ev.Domain, Text: "Hello"})
	fmt.Println(none, err)
	// Output:
	// 1 <nil>
	// true true <nil>
	// true
	// [] <nil>
}

func ExampleEngine_Decide() {
	ctx := context.Background()
	e := engine(grant.Trigger{App: "bookbot", On: grant.ReactionAdd, In: "group:*", Match: grant.Match{Target: "📚"}, Allow: []string{"message.write"}})
	react := func(id string) grant.Grant {
		grants, err := e.Emit(ctx, grant.Event{ID: id, Operation: grant.ReactionAdd, Account: "zhang-san", Domain: scope.MustDomain("group:42"), Target: "📚"})
		if err != nil {
			panic(err)
		}
		return grants[0]
	}
	g := react("r1")
	fmt.Println(g.State, "code:", !g.Code.IsZero())
	_, err := e.Decide(ctx, "li-si", g.ID, true)
	fmt.Println(err)
	decided, err := e.Decide(ctx, "zhang-san", g.ID, true)
	fmt.Println(decided.State, "code:", !decided.Code.IsZero(), err)
	fmt.Println(react("r2").State) // the answer is remembered
	// Output:
	// pending code: false
	// grant: unknown: no such grant
	// issued code: true <nil>
	// issued
}

func ExampleEngine_RevokeApp() {
	ctx := context.Background()
	e := engine(grant.Trigger{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}})
	var tokens []string
	for _, in := range []string{"group:42", "group:42/thread:7", "group:43"} {
		grants, err := e.Emit(ctx, grant.Event{ID: in, Operation: grant.Mention, Account: "zhang-san", App: "bookbot", Domain: scope.MustDomain(in)})
		if err != nil {
			panic(err)
		}
		_, token, err := e.Redeem(ctx, "bookbot", grants[0].Code)
		if err != nil {
			panic(err)
		}
		tokens = append(tokens, token.Reveal())
	}
	fmt.Println(e.RevokeApp(ctx, "zhang-san", "bookbot", scope.MustDomain("group:42")))
	for i, want := range []string{"group:42/message.write", "group:42/thread:7/message.write", "group:43/message.write"} {
		_, err := e.Use(ctx, tokens[i], scope.MustParse(want))
		fmt.Println(want, err)
	}
	// Output:
	// <nil>
	// group:42/message.write grant: revoked
	// group:42/thread:7/message.write grant: revoked
	// group:43/message.write <nil>
}

// What is changed holds on all engines that share the store when the call returns.
func ExampleEngine_Change() {
	ctx := context.Background()
	e := engine(grant.Trigger{ID: "mention", App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}})
	ev := grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", App: "bookbot", Domain: scope.MustDomain("group:42")}
	grants, err := e.Emit(ctx, ev)
	if err != nil {
		panic(err)
	}
	_, token, err := e.Redeem(ctx, "bookbot", grants[0].Code)
	if err != nil {
		panic(err)
	}
	change := func(edit func(*grant.Config)) {
		n, err := e.Change(ctx, "li-si", func(c *grant.Config) error { edit(c); return nil })
		if err != nil {
			panic(err)
		}
		_, err = e.Use(ctx, token.Reveal(), scope.MustParse("group:42/message.write"))
		fmt.Printf("%d: %v\n", n, err)
	}
	change(func(c *grant.Config) { c.Triggers[0].Suspended = true })
	change(func(c *grant.Config) { c.Triggers[0].Suspended = false })
	change(func(c *grant.Config) { c.Apps, c.Triggers = nil, nil })
	_, err = e.Change(ctx, "li-si", func(c *grant.Config) error {
		c.Apps = append(c.Apps, grant.App{ID: "dj", Actions: []string{"fly"}})
		return nil
	})
	fmt.Println(err)
	// Output:
	// 1: grant: revoked: the trigger mention is suspended
	// 2: <nil>
	// 3: grant: revoked: the app bookbot is no longer registered
	// grant: invalid: app "dj": the catalog has no action "fly"
}

func ExampleEngine_Ledger() {
	ctx := context.Background()
	e := engine(grant.Trigger{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, Uses: 1})
	grants, err := e.Emit(ctx, grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", App: "bookbot", Domain: scope.MustDomain("group:42")})
	if err != nil {
		panic(err)
	}
	_, token, err := e.Redeem(ctx, "bookbot", grants[0].Code)
	if err != nil {
		panic(err)
	}
	for range 3 {
		_, _ = e.Use(ctx, token.Reveal(), scope.MustParse("group:42/message.write"))
	}
	if err := e.Flush(ctx); err != nil { // once a second
		panic(err)
	}
	entries, err := e.Ledger(ctx, "zhang-san", "", 0)
	if err != nil {
		panic(err)
	}
	for _, entry := range entries {
		fmt.Println(entry.What, "for", entry.Account, "by", entry.App, entry.Scope, entry.Reason, entry.Count)
	}
	// Output:
	// refused for zhang-san by bookbot group:42/message.write used_up 2
	// used for zhang-san by bookbot group:42/message.write  1
	// redeemed for zhang-san by bookbot group:42/message.write  1
	// issued for zhang-san by bookbot group:42/message.write  1
}

func ExampleEngine_Grants() {
	ctx := context.Background()
	e := engine(grant.Trigger{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}})
	grants, err := e.Emit(ctx, grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", App: "bookbot", Domain: scope.MustDomain("group:42")})
	if err != nil {
		panic(err)
	}
	show := func(all bool) {
		list, err := e.Grants(ctx, "zhang-san", "", all)
		for _, g := range list {
			fmt.Println(g.App, "may", g.Scope(), "because of", g.Event.Operation, g.Event.ID, "state", g.State)
		}
		fmt.Println(len(list), err)
	}
	show(false)
	fmt.Println(e.Revoke(ctx, "zhang-san", grants[0].ID))
	show(false)
	show(true)
	// Output:
	// bookbot may group:42/message.write because of mention m1 state issued
	// 1 <nil>
	// <nil>
	// 0 <nil>
	// bookbot may group:42/message.write because of mention m1 state revoked
	// 1 <nil>
}

func ExampleEngine_Claim() {
	ctx := context.Background()
	e := engine(grant.Trigger{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, Deliver: grant.Push})
	if _, err := e.Emit(ctx, grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", App: "bookbot", Domain: scope.MustDomain("group:42")}); err != nil {
		panic(err)
	}
	post := func(g grant.Grant) bool { return g.Tries > 0 } // the first try fails
	for range 3 {
		due, err := e.Claim(ctx, grant.Push, "", nil, 100, time.Minute)
		if err != nil {
			panic(err)
		}
		for _, g := range due {
			if post(g) {
				fmt.Println("delivered at try", g.Tries+1, e.Delivered(ctx, g))
			} else {
				fmt.Println("put off", e.Postpone(ctx, g, time.Now()))
			}
		}
	}
	// Output:
	// put off <nil>
	// delivered at try 2 <nil>
}

func ExampleEngine_Inspect() {
	ctx := context.Background()
	e := engine(grant.Trigger{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write", "member.read"}})
	grants, err := e.Emit(ctx, grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", App: "bookbot", Domain: scope.MustDomain("group:42")})
	if err != nil {
		panic(err)
	}
	_, token, err := e.Redeem(ctx, "bookbot", grants[0].Code)
	if err != nil {
		panic(err)
	}
	d, err := e.Inspect(ctx, token)
	fmt.Println(d.Granted(), "left:", d.Left, err)
	_, err = e.Inspect(ctx, grant.NewSecret("bhst_made-up"))
	fmt.Println(errors.Is(err, grant.ErrUnknown))
	// Output:
	// group:42/member.read group:42/message.write left: 5 <nil>
	// true
}

func ExampleEngine_RevokeToken() {
	ctx := context.Background()
	e := engine(grant.Trigger{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}})
	grants, err := e.Emit(ctx, grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", App: "bookbot", Domain: scope.MustDomain("group:42")})
	if err != nil {
		panic(err)
	}
	fmt.Println(e.RevokeToken(ctx, "bookbot", grants[0].Code)) // the app wants none of it
	_, _, err = e.Redeem(ctx, "bookbot", grants[0].Code)
	fmt.Println(err)
	// Output:
	// <nil>
	// grant: revoked: before the code was redeemed
}

func ExampleEngine_Name() {
	e := engine()
	name := e.Name("bookbot", "zhang-san")
	fmt.Println(len(name), name == e.Name("bookbot", "zhang-san"), name == e.Name("bookbot", "li-si"))
	// Output: 22 true false
}

func ExampleSecret() {
	s := grant.NewSecret("open sesame")
	text, _ := json.Marshal(map[string]any{"s": s})
	fmt.Printf("%v %+v %s %s\n", s, struct{ S grant.Secret }{s}, text, s.Reveal())
	fmt.Println(s.Equal("open sesame"), grant.Secret{}.Equal(""))
	// Output:
	// [redacted] {S:[redacted]} {"s":"[redacted]"} open sesame
	// true false
}

// To rotate the sealing keys, three steps on all servers, one after the other.
func ExampleConfig() {
	root, next := grant.NewSecret(strings.Repeat("k", 32)), grant.NewSecret(strings.Repeat("n", 32))
	c := grant.Config{
		Store: store.NewMemory(), Key: root, Permit: func(context.Context, grant.Access) error { return nil },
		Apps:     []grant.App{{ID: "bookbot", Actions: []string{"message.write"}}},
		Triggers: []grant.Trigger{{App: "bookbot", On: grant.Mention, In: "*", Allow: []string{"message.write"}}},
	}
	var code grant.Secret
	for step, sealing := range [][]grant.Secret{nil, {root, next}, {next, root}, {next}} {
		c.Sealing = sealing
		e, err := grant.NewEngine(c)
		if err != nil {
			panic(err)
		}
		if step == 0 { // made under the old key
			grants, err := e.Emit(context.Background(), grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", App: "bookbot", Domain: scope.MustDomain("group:42")})
			if err != nil {
				panic(err)
			}
			code = grants[0].Code
			continue
		}
		_, _, err = e.Redeem(context.Background(), "bookbot", code)
		fmt.Println(step, err)
	}
	// Output:
	// 1 <nil>
	// 2 grant: used up: the code was redeemed before
	// 3 grant: unknown: not sealed by this server
}

// A use that is spent together with its effect: in a transaction, sqlstore.Tx is the store that Spend takes.
func ExampleEngine_Prepare() {
	ctx := context.Background()
	e, token := exampleToken(2)
	want := scope.MustParse("group:42/message.write")

	d, err := e.Prepare(ctx, token, want)
	if err != nil {
		panic(err)
	}
	fmt.Println("spent:", d.Spent())
	if err := d.Spend(ctx, nil); err != nil { // nil: no transaction, the engine's own store
		panic(err)
	}
	fmt.Println("spent:", d.Spent(), "left:", d.Left)
	fmt.Println(d.Spend(ctx, nil))
	// Output:
	// spent: false
	// spent: true left: 1
	// grant: invalid: the use is spent: Spend is for one time
}

// A call that carries a key happens once, whoever repeats it, and the answer is there for who asks again.
func ExampleDelegation_Once() {
	ctx := context.Background()
	e, token := exampleToken(2)
	call := func(key, text string) {
		d, err := e.Prepare(ctx, token, scope.MustParse("group:42/message.write"))
		if err != nil {
			panic(err)
		}
		if err := d.Once(key, sha256.Sum256([]byte(text))); err != nil {
			panic(err)
		}
		if err := d.Spend(ctx, nil); err != nil {
			state, _, answer := d.Repeat()
			fmt.Printf("%v (%s, %q)\n", err, state, answer)
			return
		}
		fmt.Println("posted:", text, "left:", d.Left)
		if err := d.Answered(ctx, []byte("message 7")); err != nil {
			panic(err)
		}
	}
	call("a", "Dune is reserved.")
	call("a", "Dune is reserved.")
	call("a", "Dune is not reserved.")
	call("b", "Dune is reserved.")
	// Output:
	// posted: Dune is reserved. left: 1
	// grant: invalid: the key was used before (over, "message 7")
	// grant: invalid: the key was used for another request (other, "")
	// posted: Dune is reserved. left: 0
}

// exampleToken is what BookBot has after Zhang San mentioned it in group 42.
func exampleToken(uses int) (*grant.Engine, string) {
	ctx := context.Background()
	e := engine(grant.Trigger{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, Uses: uses})
	grants, err := e.Emit(ctx, grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", App: "bookbot", Domain: scope.MustDomain("group:42")})
	if err != nil {
		panic(err)
	}
	_, token, err := e.Redeem(ctx, "bookbot", grants[0].Code)
	if err != nil {
		panic(err)
	}
	return e, token.Reveal()
}

func ExampleEngine_Derive() {
	ctx := context.Background()
	group := scope.MustDomain("group:42")
	e, err := grant.NewEngine(grant.Config{
		Store:  store.NewMemory(),
		Key:    grant.NewSecret(strings.Repeat("k", 32)), // 32 bytes from crypto/rand, in earnest
		Permit: func(context.Context, grant.Access) error { return nil },
		Apps: []grant.App{
			{ID: "assistant", Actions: []string{"message.write", "member.read"}},
			{ID: "translator", Actions: []string{"message.write"}},
		},
		Triggers: []grant.Trigger{{App: "assistant", On: grant.Mention, In: "group:*", Allow: []string{"message.write", "member.read"}, Uses: 5,
			Delegates: []string{"translator"}}},
	})
	if err != nil {
		panic(err)
	}
	grants, err := e.Emit(ctx, grant.Event{ID: "m1", Operation: grant.Mention, Account: "zhang-san", App: "assistant", Domain: group})
	if err != nil {
		panic(err)
	}
	_, token, err := e.Redeem(ctx, "assistant", grants[0].Code)
	if err != nil {
		panic(err)
	}

	// The assistant hands on no more than is needed: it narrows its token, and gives the child to the translator,
	_, handed, err := e.Derive(ctx, "assistant", token, grant.Grant{Domain: scope.MustDomain("group:42/thread:7"), Actions: []string{"message.write"}, Uses: 2})
	if err != nil {
		panic(err)
	}
	// which exchanges it for one of its own.
	g, own, err := e.Derive(ctx, "translator", handed, grant.Grant{For: time.Minute})
	if err != nil {
		panic(err)
	}
	fmt.Println(g.Scope(), g.For, "×", g.Uses)
	d, err := e.Use(ctx, own.Reveal(), scope.MustParse("group:42/thread:7/message.write"))
	fmt.Println("for", d.Account, "by", d.Actors(), "left:", d.Left, err)

	// The assistant's count has gone down with it.
	d, err = e.Inspect(ctx, token)
	fmt.Println("left of the assistant's:", d.Left, err)
	// To ask for more than there is is an error.
	_, _, err = e.Derive(ctx, "translator", own, grant.Grant{Domain: group})
	fmt.Println(err)
	// What ends the assistant's grant ends all that came of it.
	fmt.Println(e.Revoke(ctx, "zhang-san", grants[0].ID))
	_, err = e.Use(ctx, own.Reveal(), scope.MustParse("group:42/thread:7/message.write"))
	fmt.Println(err)
	// Output:
	// group:42/thread:7/message.write 1m0s × 2
	// for zhang-san by [translator assistant] left: 1 <nil>
	// left of the assistant's: 4 <nil>
	// scope: asks for more than was granted: the token is for group:42/thread:7, not for group:42
	// <nil>
	// grant: revoked
}
