package grant_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

const lease = 3 * time.Second

// bubble runs f with two engines on one store that several processes could share, in time that is not real.
func bubble(t *testing.T, change func(*grant.Config), f func(t *testing.T, w *world, a, b *grant.Engine)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *grant.Config) {
			c.Now = nil
			if change != nil {
				change(c)
			}
		})
		f(t, w, w.Engine, w.another())
	})
}

// here says of a store that it is this process's alone, so that no change waits.
type here struct {
	*probe
	moved atomic.Uint64
}

func (h *here) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	defer h.moved.Add(1)
	return h.probe.Apply(ctx, now, ops)
}

func (h *here) Watch(string) func() uint64 { return h.moved.Load }

// alone is a world whose store is this process's alone.
func alone(t testing.TB, change func(*grant.Config)) *world {
	return newWorld(t, func(c *grant.Config) {
		c.Store = &here{probe: c.Store.(*probe)}
		if change != nil {
			change(c)
		}
	})
}

// A change is one in few words.
type change struct {
	put                  []grant.App
	set                  []grant.Trigger
	removeApps, remove   []string
	suspendApps, suspend []string
	resumeApps, resume   []string
}

func (c change) edit(conf *grant.Config) error {
	for _, a := range c.put {
		if i := slices.IndexFunc(conf.Apps, func(b grant.App) bool { return a.ID == b.ID }); i >= 0 {
			a.Suspended = conf.Apps[i].Suspended
			conf.Apps[i] = a
		} else {
			conf.Apps = append(conf.Apps, a)
		}
	}
	for _, t := range c.set {
		if i := slices.IndexFunc(conf.Triggers, func(u grant.Trigger) bool { return t.ID == u.ID }); i >= 0 {
			conf.Triggers[i] = t
		} else {
			conf.Triggers = append(conf.Triggers, t)
		}
	}
	conf.Apps = slices.DeleteFunc(conf.Apps, func(a grant.App) bool { return slices.Contains(c.removeApps, a.ID) })
	conf.Triggers = slices.DeleteFunc(conf.Triggers, func(t grant.Trigger) bool {
		return slices.Contains(c.remove, t.ID) || slices.Contains(c.removeApps, t.App)
	})
	for i := range conf.Apps {
		a := &conf.Apps[i]
		a.Suspended = a.Suspended && !slices.Contains(c.resumeApps, a.ID) || slices.Contains(c.suspendApps, a.ID)
	}
	for i := range conf.Triggers {
		t := &conf.Triggers[i]
		t.Suspended = t.Suspended && !slices.Contains(c.resume, t.ID) || slices.Contains(c.suspend, t.ID)
	}
	return nil
}

func by(e *grant.Engine, c change) error {
	_, err := e.Change(ctx, "admin", c.edit)
	return err
}

func (w *world) change(c change) {
	w.t.Helper()
	require.NoError(w.t, by(w.Engine, c))
}

func suspendedIn(conf *grant.Config) (ids []string) {
	for _, a := range conf.Apps {
		if a.Suspended {
			ids = append(ids, a.ID)
		}
	}
	return ids
}

// P5: suspending holds on every node within 3 s, and the call returns only then.
func TestP5Suspended(t *testing.T) {
	for _, tc := range []struct {
		name             string
		suspend          change
		resume           change // nothing: there is no way back
		tokensLive, fire bool   // while it is suspended
	}{
		{"an app", change{suspendApps: []string{"bookbot"}}, change{resumeApps: []string{"bookbot"}}, false, false},
		{"a trigger", change{suspend: []string{"mention"}}, change{resume: []string{"mention"}}, false, false},
		{"an app, removed", change{removeApps: []string{"bookbot"}}, change{}, false, false},
		{"a trigger, removed", change{remove: []string{"mention"}}, change{}, true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(c *grant.Config) { c.Triggers[0].Uses = 10 }, func(t *testing.T, w *world, a, b *grant.Engine) {
				begin := time.Now()
				token, waits := w.redeem(w.emit(mention("m1"))), w.emit(mention("m2"))

				// The other node is asked all the while; nobody looks for it.
				changed := make(chan error)
				go func() {
					err := by(a, tc.suspend)
					changed <- err
				}()
				var held time.Duration
				for asking := true; asking; {
					select {
					case err := <-changed:
						require.NoError(t, err)
						asking = false
					case <-time.After(100 * time.Millisecond):
						got, err := b.Emit(ctx, mention(fmt.Sprint("w", time.Since(begin))))
						require.NoError(t, err)
						if len(got) == 0 && held == 0 {
							held = time.Since(begin)
						}
						require.Equal(t, len(got) == 0, held != 0, "what held once does not come back")
					}
				}
				require.NotZero(t, held)
				require.LessOrEqual(t, held, lease)
				require.Equal(t, lease, time.Since(begin), "the call returns when it holds everywhere, and no later")

				for i, e := range []*grant.Engine{a, b, w.another()} {
					got, err := e.Emit(ctx, mention("m3"))
					require.NoError(t, err)
					require.Empty(t, got, "node %d", i)
					_, err = e.Use(ctx, token, write)
					_, inspected := e.Inspect(ctx, grant.NewSecret(token))
					if tc.tokensLive {
						require.NoError(t, err)
						require.NoError(t, inspected)
						continue
					}
					require.ErrorIs(t, err, grant.ErrRevoked)
					require.Equal(t, "revoked", grant.Reason(err))
					require.ErrorIs(t, inspected, grant.ErrRevoked)
					_, _, err = e.Redeem(ctx, "bookbot", waits.Code)
					require.ErrorIs(t, err, grant.ErrRevoked)
					due, err := e.Claim(ctx, grant.Poll, "bookbot", nil, 10, time.Second)
					require.NoError(t, err)
					require.Empty(t, due)
				}
				list, err := b.Grants(ctx, "zhang-san", "", true)
				require.NoError(t, err)
				for _, g := range list {
					want := map[bool]string{true: "suspended", false: "revoked"}[len(tc.resume.resumeApps)+len(tc.resume.resume) > 0]
					if !tc.tokensLive {
						require.Equal(t, want, g.State)
					}
				}
				if len(tc.resume.resumeApps)+len(tc.resume.resume) == 0 {
					return
				}

				// What has not expired works again.
				err = by(b, tc.resume)
				require.NoError(t, err)
				for _, e := range []*grant.Engine{a, b} {
					_, err = e.Use(ctx, token, write)
					require.NoError(t, err)
				}
				due, err := a.Claim(ctx, grant.Poll, "bookbot", nil, 100, time.Second)
				require.NoError(t, err)
				require.True(t, slices.ContainsFunc(due, func(g grant.Grant) bool { return g.ID == waits.ID }), "the delivery has waited")
				_, _, err = b.Redeem(ctx, "bookbot", waits.Code)
				require.NoError(t, err)
			})
		})
	}
}

// With a store of this process alone, everybody knows at once.
func TestP5SuspendedAtOnce(t *testing.T) {
	w := newWorld(t, func(c *grant.Config) { c.Store = store.NewMemory() }) // and a clock that stands still
	nodes := w.nodes()
	token := w.token("m1")
	for i := range 20 {
		err := by(nodes[i%2], change{suspendApps: []string{"bookbot"}})
		require.NoError(t, err)
		for _, e := range nodes {
			_, err = e.Use(ctx, token, write)
			require.ErrorIs(t, err, grant.ErrRevoked)
		}
		err = by(nodes[i/2%2], change{resumeApps: []string{"bookbot"}})
		require.NoError(t, err)
		for _, e := range nodes {
			_, err = e.Inspect(ctx, grant.NewSecret(token))
			require.NoError(t, err)
		}
	}
}

// Ten callers use, one suspends: who began after the call had returned is refused.
func TestP5SuspendedUnderLoad(t *testing.T) {
	w := newWorld(t, func(c *grant.Config) {
		c.Store, c.Now = store.NewMemory(), nil
		c.Triggers[0].Uses = grant.Unlimited
	})
	nodes := w.nodes()
	token := w.token("m1")
	var epoch atomic.Int64 // odd while it is suspended
	stop := make(chan struct{})
	var used atomic.Int64
	done := make(chan error)
	for i := range 10 {
		go func() {
			for {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				was := epoch.Load()
				_, err := nodes[i%2].Use(ctx, token, write)
				switch {
				case err == nil && was%2 == 1 && epoch.Load() == was:
					done <- errors.New("used after it was suspended")
					return
				case err == nil:
					used.Add(1)
				case !errors.Is(err, grant.ErrRevoked):
					done <- err
					return
				}
			}
		}()
	}
	for range 50 {
		before := used.Load()
		require.Eventually(t, func() bool { return used.Load() > before }, time.Minute, 100*time.Microsecond)
		w.change(change{suspend: []string{"mention"}})
		epoch.Add(1)
		_, err := nodes[1].Use(ctx, token, write)
		require.ErrorIs(t, err, grant.ErrRevoked)
		epoch.Add(1)
		w.change(change{resume: []string{"mention"}})
	}
	close(stop)
	for range 10 {
		require.NoError(t, <-done)
	}
}

// A node whose looks bring no answer lets nothing through from 3 s after its last look on, and is back by itself.
func TestP5CutOff(t *testing.T) {
	for name, away := range map[string]func(context.Context) error{
		"that refuses": func(context.Context) error { return errStore },
		"that hangs":   func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		t.Run("a store "+name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var cut atomic.Bool
				var far *cutOff
				w := newWorld(t, func(c *grant.Config) {
					c.Now = nil
					c.Triggers[0].Consent = grant.Always
					c.Triggers = append(c.Triggers, grant.Trigger{ID: "read", App: "bookbot", On: grant.ButtonPress, In: "group:*", Allow: []string{"message.read"}})
					far = &cutOff{probe: c.Store.(*probe), away: func(ctx context.Context) error {
						if cut.Load() {
							return away(ctx)
						}
						return nil
					}}
					c.Store = far
				})
				press := mention("b1")
				press.Operation = grant.ButtonPress
				token := w.redeem(w.emit(press))
				press.ID = "b2"
				code := w.emit(press).Code
				asked := w.emit(mention("m1"))

				read := scope.MustParse("group:42/message.read")
				calls := map[string]func() error{
					"Emit": func() error { _, err := w.Emit(ctx, mention("m9")); return err },
					"Emit of what matches nothing": func() error {
						ev := mention("m9")
						ev.App = "weather"
						_, err := w.Emit(ctx, ev)
						return err
					},
					"Redeem":        func() error { _, _, err := w.Redeem(ctx, "bookbot", code); return err },
					"Use":           func() error { _, err := w.Use(ctx, token, read); return err },
					"Inspect":       func() error { _, err := w.Inspect(ctx, grant.NewSecret(token)); return err },
					"Decide":        func() error { _, err := w.Decide(ctx, "zhang-san", asked.ID, true); return err },
					"Claim":         func() error { _, err := w.Claim(ctx, grant.Poll, "", nil, 1, time.Second); return err },
					"Grants":        func() error { _, err := w.Grants(ctx, "zhang-san", "", true); return err },
					"Configuration": func() error { _, err := w.Configuration(ctx); return err },
					"Change":        func() error { err := by(w.Engine, change{suspendApps: []string{"bookbot"}}); return err },
				}
				require.NoError(t, w.Look(ctx))
				looked := time.Now()
				cut.Store(true)
				// Only the configuration is out of reach: what has been seen holds for a while.
				time.Sleep(lease - 200*time.Millisecond)
				_, err := w.Use(ctx, token, read)
				require.NoError(t, err)
				time.Sleep(lease - time.Since(looked))
				w.store.reset()
				for name, call := range calls {
					began := time.Now()
					err := call()
					require.Error(t, err, name)
					require.Empty(t, grant.Reason(err), "%s: %v", name, err)
					require.NotErrorIs(t, err, grant.ErrInvalid, name)
					require.NotErrorIs(t, err, grant.ErrUnknown, name)
					require.LessOrEqual(t, time.Since(began), lease, name)
				}
				require.Zero(t, w.store.count("apply"), "nothing was written")
				_, err = w.Use(ctx, "bhst_"+strings.Repeat("A", 400), read)
				require.ErrorIs(t, err, grant.ErrUnknown, "a forgery is one, whatever is away")

				cut.Store(false)
				for _, name := range []string{"Emit", "Use", "Redeem", "Inspect", "Decide", "Claim", "Grants", "Configuration", "Change"} {
					require.NoError(t, calls[name](), name)
				}
			})
		})
	}
}

// cutOff has nothing to say about the configuration while away says so; all else works.
type cutOff struct {
	*probe
	away func(context.Context) error
}

func (c *cutOff) Get(ctx context.Context, kind string, ids ...string) ([]store.Record, error) {
	if kind == "config" {
		if err := c.away(ctx); err != nil {
			return nil, err
		}
	}
	return c.probe.Get(ctx, kind, ids...)
}

// A call looks itself when nobody did for three seconds: once, for all that wait, and also when the clock has jumped.
func TestLookIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var slow chan struct{}
		w := newWorld(t, func(c *grant.Config) {
			c.Store = &cutOff{probe: c.Store.(*probe), away: func(context.Context) error {
				if slow != nil {
					<-slow
				}
				return nil
			}}
		})
		token := grant.NewSecret(w.token("m1"))
		for _, jump := range []time.Duration{lease, 5 * time.Minute, -time.Minute} {
			w.clock.advance(jump)
			w.store.reset()
			slow = make(chan struct{})
			time.AfterFunc(time.Second, func() { close(slow) }) // when they have all come
			errs := together(10, func(int) error {
				_, err := w.Inspect(ctx, token)
				return err
			})
			require.Equal(t, 10, winners(t, errs))
			require.Equal(t, 2*10+1, w.store.count("get"), "each inspects with two; after %v", jump)
		}
		// As long as it is fresh, nothing is asked.
		w.clock.advance(lease - 101*time.Millisecond)
		w.store.reset()
		_, err := w.Emit(ctx, mention("m2"))
		require.NoError(t, err)
		require.Equal(t, map[string]int{"apply": 1}, w.store.calls)
	})
}

// Who looks for others and goes away leaves the look to them.
func TestLookDeserted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var hang atomic.Bool
		w := newWorld(t, func(c *grant.Config) {
			c.Now = nil
			c.Store = &cutOff{probe: c.Store.(*probe), away: func(ctx context.Context) error {
				if hang.CompareAndSwap(true, false) { // the first one alone
					<-ctx.Done()
					return ctx.Err()
				}
				return nil
			}}
		})
		token := grant.NewSecret(w.token("m1"))
		time.Sleep(lease)
		hang.Store(true)
		leader, cancel := context.WithCancel(ctx)
		first, second := make(chan error, 1), make(chan error, 1)
		go func() { _, err := w.Inspect(leader, token); first <- err }()
		synctest.Wait()
		go func() { _, err := w.Inspect(ctx, token); second <- err }()
		synctest.Wait()
		cancel()
		require.ErrorIs(t, <-first, context.Canceled)
		require.NoError(t, <-second)
	})
}

func TestChange(t *testing.T) {
	w := alone(t, nil)
	other := w.another()
	conf, err := other.Configuration(ctx)
	require.NoError(t, err)
	again, err := other.Configuration(ctx)
	require.NoError(t, err)
	require.Same(t, conf, again)

	// A new app with a new trigger.
	dj := grant.App{ID: "dj", Actions: []string{"message.write"}, Private: map[string]grant.Secret{"a": grant.NewSecret("one"), "b": grant.NewSecret("two")}}
	n, err := w.Change(ctx, "admin", change{put: []grant.App{dj},
		set: []grant.Trigger{{App: "dj", On: grant.Command, In: "group:*", Allow: []string{"message.write"}, Match: grant.Match{Command: "/play"}}}}.edit)
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
	dj.Actions[0] = "message.read" // the caller's is the caller's
	for _, e := range []*grant.Engine{w.Engine, other, w.another()} {
		conf, err := e.Configuration(ctx)
		require.NoError(t, err)
		require.Equal(t, []string{"bookbot", "weather", "dj"}, idsOf(conf.Apps))
		require.Equal(t, grant.App{ID: "dj", Name: "dj", Actions: []string{"message.write"}, Private: conf.Apps[2].Private}, conf.Apps[2])
		require.Equal(t, "one", conf.Apps[2].Private["a"].Reveal())
		require.Equal(t, "dj:command:group:*", conf.Triggers[1].ID)
		play := grant.Event{ID: "p1", Operation: grant.Command, Account: "li-si", Domain: group, App: "dj", Target: "/play"}
		got, err := e.Emit(ctx, play)
		require.NoError(t, err)
		require.Len(t, got, 1)
	}

	// An app is replaced, all of it.
	dj.Name, dj.Actions, dj.Private = "DJ", []string{"message.write", "message.read"}, map[string]grant.Secret{"a": grant.NewSecret("one"), "c": grant.NewSecret("three")}
	w.change(change{put: []grant.App{dj}})
	conf, err = other.Configuration(ctx)
	require.NoError(t, err)
	require.Equal(t, "DJ", conf.Apps[2].Name)
	require.Len(t, conf.Apps[2].Private, 2)
	require.Equal(t, "one", conf.Apps[2].Private["a"].Reveal())
	require.Equal(t, "three", conf.Apps[2].Private["c"].Reveal())
	require.NotContains(t, fmt.Sprintf("%+v %#v", conf, conf), "three")

	// One of Config's is replaced, in its place; a trigger changed touches no grant that was issued (P4).
	g := w.emit(mention("m1"))
	bot, mentioned := bookbot(), onMention()
	bot.RealNames, mentioned.Uses, mentioned.Allow = true, 1, []string{"message.read"}
	w.change(change{put: []grant.App{bot}, set: []grant.Trigger{mentioned}})
	require.NoError(t, other.Look(ctx))
	require.Equal(t, "zhang-san", other.Name("bookbot", "zhang-san"))
	conf, err = other.Configuration(ctx)
	require.NoError(t, err)
	require.Equal(t, []string{"bookbot", "weather", "dj"}, idsOf(conf.Apps))
	require.Equal(t, "mention", conf.Triggers[0].ID)
	token := w.redeem(g)
	d, err := other.Use(ctx, token, write)
	require.NoError(t, err)
	require.Equal(t, 2, d.Left)
	require.Equal(t, 1, w.emit(mention("m2")).Uses)

	// An app that may less: asked at the next use (P4). The trigger may not allow more than its app.
	bot.Actions = []string{"message.read"}
	w.change(change{put: []grant.App{bot}})
	_, err = other.Use(ctx, token, write)
	require.ErrorIs(t, err, grant.ErrDenied)
}

func idsOf(apps []grant.App) (ids []string) {
	for _, a := range apps {
		ids = append(ids, a.ID)
	}
	return ids
}

// All faults at once, and nothing written.
func TestChangeInvalid(t *testing.T) {
	w := alone(t, func(c *grant.Config) {
		c.Check = func(apps []grant.App, _ []grant.Trigger) error {
			if i := slices.IndexFunc(apps, func(a grant.App) bool { return strings.HasPrefix(a.Name, "Bad") }); i >= 0 {
				return fmt.Errorf("the house does not like %s", apps[i].Name)
			}
			return nil
		}
	})
	add := func(apps []grant.App, triggers ...grant.Trigger) func(*grant.Config) error {
		return func(c *grant.Config) error {
			c.Apps, c.Triggers = append(c.Apps, apps...), append(c.Triggers, triggers...)
			return nil
		}
	}
	for _, tc := range []struct {
		name string
		by   string
		edit func(*grant.Config) error
		want []string
	}{
		{"a long name", strings.Repeat("x", 257), add(nil), []string{"who makes the change has 257 bytes"}},
		{"faults of all kinds", "", add([]grant.App{{ID: "a b", Name: "Bad"}, {ID: "dj", Actions: []string{"fly"}}},
			grant.Trigger{ID: "t", App: "nobody", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, For: 8 * 24 * time.Hour}),
			[]string{`app "a b": an ID has`, "the house does not like Bad", `no action "fly"`, `no app has the ID "nobody"`, "for: 192h0m0s"}},
		{"twice", "", add([]grant.App{{ID: "dj"}, {ID: "dj"}}, onMention()), []string{`app "dj" is there twice`, `trigger "mention" is there twice`}},
		{"an app that goes and leaves its trigger", "", func(c *grant.Config) error { c.Apps = nil; return nil }, []string{`no app has the ID "bookbot"`}},
		{"an app that may less than its trigger", "", change{put: []grant.App{{ID: "bookbot"}}}.edit, []string{`not registered for "message.write"`}},
		{"no UTF-8", "", add([]grant.App{{ID: "dj", Private: map[string]grant.Secret{"x": grant.NewSecret("\xff")}}},
			grant.Trigger{ID: "t", App: "bookbot", On: grant.PageOpen, In: "group:*", Allow: []string{"message.read"}, Match: grant.Match{Target: "\xff"}}),
			[]string{`app "dj" is not UTF-8`, `trigger "t" is not UTF-8`}},
		{"too large", "", add([]grant.App{{ID: "dj", Private: map[string]grant.Secret{"x": grant.NewSecret(strings.Repeat("x", 1<<20))}}}), []string{"at most 1048576: make it in parts"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before, err := w.Configuration(ctx)
			require.NoError(t, err)
			w.store.reset()
			n, err := w.Change(ctx, tc.by, tc.edit)
			require.ErrorIs(t, err, grant.ErrInvalid)
			require.Zero(t, n)
			for _, text := range tc.want {
				require.ErrorContains(t, err, text)
			}
			require.NotContains(t, err.Error(), "\xff")
			require.Zero(t, w.store.count("apply"))
			after, err := w.Configuration(ctx)
			require.NoError(t, err)
			require.Same(t, before, after)
		})
	}
	// What edit says goes to the caller as it is.
	no := errors.New("no")
	_, err := w.Change(ctx, "", func(*grant.Config) error { return no })
	require.Equal(t, no, err)
	// Nothing may be changed as well: then it is known to hold.
	n, err := w.Change(ctx, "", func(*grant.Config) error { return nil })
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
	// Larger than one record, in parts.
	for i := range 3 {
		w.change(change{put: []grant.App{{ID: fmt.Sprint("dj", i), Private: map[string]grant.Secret{"x": grant.NewSecret(strings.Repeat("x", 1000_000))}}}})
	}
}

// What only suspends an app of Config leaves it to Config: with the next one, it is what that says.
func TestSuspendedStaysConfigs(t *testing.T) {
	w := alone(t, nil)
	w.change(change{suspendApps: []string{"bookbot"}, suspend: []string{"mention"}})
	w.config.Apps[0].Name, w.config.Triggers[0].Uses = "BookBot II", 7
	next := w.another()
	conf, err := next.Configuration(ctx)
	require.NoError(t, err)
	require.Equal(t, "BookBot II", conf.Apps[0].Name)
	require.True(t, conf.Apps[0].Suspended)
	require.True(t, conf.Triggers[0].Suspended)
	require.Equal(t, 7, conf.Triggers[0].Uses)
	// And one that Config suspends can be resumed.
	w.config.Apps[0].Suspended, w.config.Triggers[0].Suspended = true, true
	next = w.another()
	require.NoError(t, by(next, change{resumeApps: []string{"bookbot"}, resume: []string{"mention"}}))
	got, err := w.another().Emit(ctx, mention("m1"))
	require.NoError(t, err)
	require.Len(t, got, 1)
	require.Equal(t, 7, got[0].Uses)
}

// What an app was granted before it was removed stays dead when it is added again, on every node.
func TestRemovedAppBeginsAnew(t *testing.T) {
	w := alone(t, nil)
	other := w.another()
	token, code := w.token("m1"), w.emit(mention("m2"))
	w.change(change{removeApps: []string{"bookbot"}})
	conf, err := other.Configuration(ctx)
	require.NoError(t, err)
	require.Equal(t, []string{"weather"}, idsOf(conf.Apps))
	require.Empty(t, conf.Triggers, "its triggers have gone with it")
	due, err := other.Claim(ctx, grant.Poll, "bookbot", nil, 10, time.Second)
	require.NoError(t, err)
	require.Empty(t, due)
	require.Empty(t, w.store.ofKind(t, "poll"), "the deliveries have ended")

	w.clock.advance(time.Second)
	w.change(change{put: []grant.App{bookbot()}, set: []grant.Trigger{onMention()}})
	w.clock.advance(time.Second)
	for _, e := range []*grant.Engine{w.Engine, other, w.another()} {
		_, err = e.Use(ctx, token, write)
		require.ErrorIs(t, err, grant.ErrRevoked)
		_, _, err = e.Redeem(ctx, "bookbot", code.Code)
		require.ErrorIs(t, err, grant.ErrRevoked)
	}
	list, err := other.Grants(ctx, "zhang-san", "", false)
	require.NoError(t, err)
	require.Empty(t, list)
	_, err = other.Use(ctx, w.token("m3"), write)
	require.NoError(t, err)
	// Replaced later, it is still so.
	w.change(change{put: []grant.App{bookbot()}})
	_, err = other.Use(ctx, token, write)
	require.ErrorIs(t, err, grant.ErrRevoked)
}

// A trigger that is suspended and then removed still suspends what it has granted; added again, it is what is said then.
func TestRemovedSuspendedTrigger(t *testing.T) {
	for _, inConfig := range []bool{false, true} {
		w := alone(t, nil)
		token := w.token("m1")
		e := w.Engine
		if inConfig {
			w.config.Triggers[0].Suspended = true
			e = w.another()
		} else {
			w.change(change{suspend: []string{"mention"}})
		}
		require.NoError(t, by(e, change{remove: []string{"mention"}}))
		_, err := w.another().Use(ctx, token, write)
		require.ErrorIs(t, err, grant.ErrRevoked)
		require.NoError(t, by(e, change{set: []grant.Trigger{onMention()}}))
		_, err = w.another().Use(ctx, token, write)
		require.NoError(t, err)
	}
}

// A trigger that is suspended while Permit takes its time grants no use any more, where that is known.
func TestSuspendedDuringPermit(t *testing.T) {
	w := newWorld(t, func(c *grant.Config) { c.Store = store.NewMemory() })
	token := w.token("m1")
	w.setPermit(func(context.Context, grant.Access) error {
		w.setPermit(nil)
		err := by(w.Engine, change{suspend: []string{"mention"}})
		return err
	})
	_, err := w.Use(ctx, token, write)
	require.ErrorIs(t, err, grant.ErrRevoked)
}

// Of two who change at once, one is made first and the other is checked again with it: none is lost.
func TestChangesAtOnce(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world, a, b *grant.Engine) {
		nodes := []*grant.Engine{a, b, w.another()}
		numbers := make([]uint64, 10)
		errs := together(10, func(i int) (err error) {
			numbers[i], err = nodes[i%3].Change(ctx, "", change{put: []grant.App{{ID: fmt.Sprint("app", i)}}}.edit)
			return err
		})
		require.Equal(t, 10, winners(t, errs))
		slices.Sort(numbers)
		require.Equal(t, []uint64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, numbers)
		for _, e := range nodes {
			conf, err := e.Configuration(ctx)
			require.NoError(t, err)
			require.Len(t, conf.Apps, 12)
		}
		// Two that do not go together: one of them is told.
		errs = together(2, func(i int) error {
			c := change{removeApps: []string{"app1"}}
			if i == 1 {
				c = change{put: []grant.App{{ID: "app1", Actions: []string{"message.write"}}},
					set: []grant.Trigger{{App: "app1", On: grant.Command, In: "*", Allow: []string{"message.write"}}}}
			}
			return by(nodes[i], c)
		})
		require.NoError(t, errs[0])
		require.NoError(t, errs[1])
	})
}

// Whatever call of the store fails, before or after it was carried out, a change is made or it is not, and the next
// node starts with what is there. Tried again, it is made.
func TestChangeFaults(t *testing.T) {
	for _, earlier := range []int{0, 63, 127} { // with the 64th, a snapshot is written, and with the 128th one in its place
		for _, lose := range []string{"the call", "the answer"} {
			for n := 1; ; n++ {
				w := alone(t, nil)
				for i := range earlier {
					w.change(change{put: []grant.App{{ID: fmt.Sprint("app", i%5), Name: fmt.Sprint(i)}}})
				}
				require.NoError(t, w.Look(ctx))
				w.store.reset()
				failing := func(call int, _ string) error {
					if call >= n { // and all after it: the process has died
						return errStore
					}
					return nil
				}
				if w.store.before = failing; lose == "the answer" {
					w.store.before, w.store.after = func(call int, _ string) error {
						if call > n {
							return errStore
						}
						return nil
					}, failing
				}
				err := by(w.Engine, change{suspendApps: []string{"bookbot"}, put: []grant.App{{ID: "last"}}})
				calls := w.store.total()
				w.store.reset()
				name := fmt.Sprintf("%d earlier, %s %d is lost", earlier, lose, n)

				started := w.another()
				conf, failed := started.Configuration(ctx)
				require.NoError(t, failed, name)
				made := len(suspendedIn(conf)) == 1
				require.Equal(t, made, slices.ContainsFunc(conf.Apps, func(a grant.App) bool { return a.ID == "last" }), name)
				if err == nil {
					require.True(t, made, name)
				} else {
					require.ErrorIs(t, err, errStore, name)
				}
				for _, e := range []*grant.Engine{w.Engine, started} { // again
					err = by(e, change{suspendApps: []string{"bookbot"}, put: []grant.App{{ID: "last"}}})
					require.NoError(t, err, name)
				}
				conf, err = w.another().Configuration(ctx)
				require.NoError(t, err, name)
				require.Equal(t, []string{"bookbot"}, suspendedIn(conf), name)
				if calls < n {
					break
				}
			}
		}
	}
}

// History is put together: a node that starts reads little, whatever was changed, and one that is behind catches up.
func TestChangesAreCompacted(t *testing.T) {
	w := alone(t, nil)
	behind := map[int]*grant.Engine{}
	big := strings.Repeat("x", 150_000) // so that a snapshot takes several records
	for i := range 200 {
		c := change{put: []grant.App{{ID: fmt.Sprint("app", i%7), Name: fmt.Sprint("name ", i)}}}
		if i%7 == 3 {
			c.put[0].Private = map[string]grant.Secret{"big": grant.NewSecret(big)}
			c.put[0].ID = fmt.Sprint("app", 100+i%4)
		}
		if i%50 == 30 {
			c.suspendApps = []string{"app100"}
		}
		if i%50 == 31 {
			c.removeApps = []string{"app100"}
			c.put[0].ID = "app1"
		}
		w.change(c)
		if i%40 == 5 || i >= 190 {
			behind[i] = w.another()
		}
	}
	records := w.store.ofKind(t, "config")
	require.LessOrEqual(t, len(records), 1+64+10, "a head, the changes since the snapshot, and that")
	want, err := w.Configuration(ctx)
	require.NoError(t, err)

	w.store.reset()
	started := w.another()
	require.LessOrEqual(t, w.store.total(), 1+1+8, "the head, the changes, the snapshot")
	behind[200] = started
	for at, e := range behind {
		got, err := e.Configuration(ctx)
		require.NoError(t, err, at)
		require.Equal(t, want, got, "from %d", at)
	}
	w.store.reset()
	require.NoError(t, started.Look(ctx))
	require.Equal(t, map[string]int{"get": 1}, w.store.calls, "what has not changed is one look")
}

// A store that was set back is followed, also when it has gone another way to the same number.
func TestStoreSetBack(t *testing.T) {
	w := newWorld(t, func(c *grant.Config) { c.Store = store.NewMemory() })
	set := w.config.Store
	empty := func() {
		found, err := set.List(ctx, store.Query{Kind: "config"})
		require.NoError(t, err)
		for _, r := range found {
			_, err := set.Apply(ctx, start, []store.Op{store.Delete(r.Kind, r.ID, store.AnyVersion)})
			require.NoError(t, err)
		}
	}
	w.change(change{suspendApps: []string{"bookbot"}})
	w.change(change{suspendApps: []string{"weather"}})
	seen := w.Engine
	empty()
	conf, err := seen.Configuration(ctx)
	require.NoError(t, err)
	require.Empty(t, suspendedIn(conf))
	w.change(change{suspendApps: []string{"bookbot"}})
	w.change(change{suspendApps: []string{"weather"}})

	// Another history of the same length, while one does not look.
	w2 := newWorld(t, func(c *grant.Config) { c.Store = newProbe(set) })
	conf, err = w2.Configuration(ctx)
	require.NoError(t, err)
	require.Len(t, suspendedIn(conf), 2)
	empty()
	w.change(change{put: []grant.App{{ID: "dj"}}})
	w.change(change{put: []grant.App{{ID: "dj2"}}})
	require.NoError(t, w2.Look(ctx))
	conf, err = w2.Configuration(ctx)
	require.NoError(t, err)
	require.Empty(t, suspendedIn(conf))
	require.Len(t, conf.Apps, 4)
}

// A look that was slow never puts back what a change has made since.
func TestSlowLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := make(chan struct{})
		var holds atomic.Bool
		w := newWorld(t, func(c *grant.Config) {
			c.Now = nil
			c.Store = &lateAnswer{probe: c.Store.(*probe), late: func() {
				if holds.CompareAndSwap(true, false) {
					<-slow
				}
			}}
		})
		holds.Store(true)
		looked, changed := make(chan error, 1), make(chan error, 1)
		go func() { looked <- w.Look(ctx) }()
		synctest.Wait() // it has its answer
		go func() {
			err := by(w.Engine, change{suspendApps: []string{"bookbot"}})
			changed <- err
		}()
		synctest.Wait() // it is made
		close(slow)
		require.NoError(t, <-looked)
		got, err := w.Emit(ctx, mention("m1"))
		require.NoError(t, err)
		require.Empty(t, got)
		require.NoError(t, <-changed)
	})
}

// P5: an answer that comes when the lease is over is none, though the store cares for no deadline.
func TestP5AnswerTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var late atomic.Bool
		w := newWorld(t, func(c *grant.Config) { c.Now = nil })
		there := w.config
		there.Store = &lateAnswer{probe: w.store, late: func() {
			if late.CompareAndSwap(true, false) {
				time.Sleep(10 * time.Second)
			}
		}}
		slow, err := grant.NewEngine(there)
		require.NoError(t, err)
		token := w.token("m1")
		late.Store(true)
		looked := make(chan error, 1)
		go func() { looked <- slow.Look(ctx) }()
		synctest.Wait() // it has its answer
		w.change(change{suspendApps: []string{"bookbot"}})
		_, err = slow.Use(ctx, token, write) // waits for the same answer
		require.Error(t, err)
		require.Error(t, <-looked)
		_, err = slow.Use(ctx, token, write)
		require.ErrorIs(t, err, grant.ErrRevoked)
	})
}

// lateAnswer holds answers back that the store has given.
type lateAnswer struct {
	*probe
	late func()
}

func (l *lateAnswer) Get(ctx context.Context, kind string, ids ...string) ([]store.Record, error) {
	found, err := l.probe.Get(ctx, kind, ids...)
	if kind == "config" {
		l.late()
	}
	return found, err
}

// Who does not wait is told that the change is made.
func TestChangeNotWaitedFor(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world, a, b *grant.Engine) {
		soon, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		n, err := a.Change(soon, "", change{suspendApps: []string{"bookbot"}}.edit)
		require.EqualValues(t, 1, n)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "change 1 is made")
		require.NoError(t, b.Look(ctx))
		got, err := b.Emit(ctx, mention("m1"))
		require.NoError(t, err)
		require.Empty(t, got)
		// One that never was.
		gone, cancel := context.WithCancel(ctx)
		cancel()
		n, err = a.Change(gone, "", change{resumeApps: []string{"bookbot"}}.edit)
		require.Zero(t, n)
		require.Error(t, err)
	})
}

// Nodes may start with different Configs. One with which the changes do not go lets nothing through, says why, and is
// back when they do.
func TestNodesWithDifferentConfigs(t *testing.T) {
	w := alone(t, nil)
	w.config.Apps = w.config.Apps[:1] // no weather
	other := w.another()
	w.change(change{set: []grant.Trigger{{ID: "rain", App: "weather", On: grant.Command, In: "*", Allow: []string{"message.write"}}}})
	err := other.Look(ctx)
	require.ErrorContains(t, err, `does not go with this node's Config: grant: invalid: trigger "rain": app: no app has the ID "weather"`)
	require.NotErrorIs(t, err, grant.ErrInvalid, "it is no fault of the caller's")
	_, err = other.Emit(ctx, mention("m1"))
	require.Error(t, err)
	// Also from here it can be put right.
	err = by(other, change{remove: []string{"rain"}})
	require.NoError(t, err)
	got, err := other.Emit(ctx, mention("m1"))
	require.NoError(t, err)
	require.Len(t, got, 1)
}

// P6: nothing of the configuration can be read in the store, nor changed there.
func TestP6ConfigurationSealed(t *testing.T) {
	w := alone(t, nil)
	for i := range 70 { // with a snapshot
		w.change(change{put: []grant.App{{ID: "dj", Name: "discjockey", Private: map[string]grant.Secret{
			"secret": grant.NewSecret("the-client-secret"), "n": grant.NewSecret(fmt.Sprint(i))}}}})
	}
	records := w.store.ofKind(t, "config")
	require.Greater(t, len(records), 7)
	for _, r := range records {
		for _, text := range []string{"the-client-secret", "discjockey", "the-administrator", "private"} {
			require.NotContains(t, string(r.Data), text)
			require.NotContains(t, r.ID+r.Owner+r.App, text)
		}
		require.False(t, bytes.Contains(r.Data, []byte("{")) && bytes.Contains(r.Data, []byte(`"number"`)))
	}
	put := func(r store.Record) {
		r.Version = store.AnyVersion
		_, err := w.config.Store.Apply(ctx, start, []store.Op{store.Put(r)})
		require.NoError(t, err)
	}
	byID := map[string]store.Record{}
	for _, r := range records {
		byID[r.ID] = r
	}
	starts := func() error {
		e, err := grant.NewEngine(w.config)
		require.NoError(t, err)
		return e.Look(ctx)
	}
	require.NoError(t, starts())
	for id, r := range byID {
		damaged := r
		damaged.Data = slices.Clone(r.Data)
		damaged.Data[len(r.Data)/2] ^= 1
		put(damaged)
		err := starts()
		require.ErrorContains(t, err, "record config "+id, "a damaged record is named")
		damaged.Data = []byte("short")
		put(damaged)
		require.ErrorContains(t, starts(), "record config "+id)
		for otherID, other := range byID { // one in the place of another
			if otherID != id {
				damaged.Data = other.Data
				put(damaged)
				require.ErrorContains(t, starts(), "record config "+id)
				break
			}
		}
		put(r)
	}
	require.NoError(t, starts())
	w.config.Key = grant.NewSecret(strings.Repeat("o", 32))
	require.ErrorContains(t, starts(), "was not sealed with this Key")
}

// Ends are forgotten when nothing that was granted before can be alive, unless Config would bring back what ended.
func TestEndsAreForgotten(t *testing.T) {
	w := alone(t, nil)
	w.change(change{put: []grant.App{{ID: "dj"}}, suspendApps: []string{"dj"}})
	w.change(change{removeApps: []string{"dj", "weather"}})
	w.clock.advance(10 * 24 * time.Hour)
	for range 70 {
		w.change(change{put: []grant.App{{ID: "other"}}})
	}
	fresh := w.another()
	conf, err := fresh.Configuration(ctx)
	require.NoError(t, err)
	require.Equal(t, []string{"bookbot", "other"}, idsOf(conf.Apps), "Config's stays away")
	require.Empty(t, suspendedIn(conf))
	// What is forgotten begins as what never was.
	require.NoError(t, by(fresh, change{put: []grant.App{{ID: "dj"}}}))
	conf, err = fresh.Configuration(ctx)
	require.NoError(t, err)
	require.Empty(t, suspendedIn(conf))
}

// New touches no store.
func TestNewEngineTouchesNoStore(t *testing.T) {
	w := newWorld(t, nil)
	w.store.reset()
	_, err := grant.NewEngine(w.config)
	require.NoError(t, err)
	require.Zero(t, w.store.total())
}

// An engine over a transaction goes by the configuration outside of it.
func TestInFollowsTheConfiguration(t *testing.T) {
	w := alone(t, nil)
	tx := newProbe(store.NewMemory())
	in := w.In(tx)
	w.change(change{suspendApps: []string{"bookbot"}})
	got, err := in.Emit(ctx, mention("m1"))
	require.NoError(t, err)
	require.Empty(t, got)
	err = by(in, change{resumeApps: []string{"bookbot"}})
	require.NoError(t, err)
	require.Zero(t, tx.total())
	got, err = in.Emit(ctx, mention("m1"))
	require.NoError(t, err)
	require.Len(t, got, 1)
	require.EqualValues(t, 1, tx.total())
}
