package redisstore_test

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

// evalSha is a line of MONITOR: a time, a database and a client, and then the command.
var evalSha = regexp.MustCompile(`^\+[0-9.]+ \[0 [^ ]+\] "evalsha" "([0-9a-f]{40})" `)

// scripts are the scripts of this package, by what a server calls them.
func scripts(t *testing.T) map[string]string {
	names := make(map[string]string)
	for _, name := range []string{"apply", "get", "due", "lease", "purge"} {
		text, err := os.ReadFile(name + ".lua")
		require.NoError(t, err)
		sum := sha1.Sum(text)
		names[hex.EncodeToString(sum[:])] = name
	}
	return names
}

// look does what a node does once a second, whatever is asked of it: it looks whether the configuration has changed.
func look(t *testing.T, e *grant.Engine) { require.NoError(t, e.Look(background)) }

// TestWire counts what an engine sends, as the server sees it. Each call is made by a node that has never seen the grant, with a client of its own.
func TestWire(t *testing.T) {
	server, names := quiet(t), scripts(t)
	prefix := fresh()
	group, write := scope.MustDomain("group:42"), scope.MustParse("group:42/message.write")
	node := func() *grant.Engine {
		e, err := grant.NewEngine(grant.Config{
			Store: open(t, server.client(), prefix), Key: grant.NewSecret(strings.Repeat("k", 32)), Now: func() time.Time { return now },
			Permit:   func(context.Context, grant.Access) error { return nil },
			Apps:     []grant.App{{ID: "bookbot", Actions: []string{"message.write"}}},
			Triggers: []grant.Trigger{{App: "bookbot", On: grant.Mention, In: "group:*", Allow: []string{"message.write"}, Uses: 2}},
		})
		require.NoError(t, err)
		look(t, e)
		return e
	}
	event := func(id string) grant.Event {
		return grant.Event{ID: id, Operation: grant.Mention, Account: "account-" + id, App: "bookbot", Domain: group}
	}
	first := node()
	issued := func(id string) grant.Grant {
		got, err := first.Emit(background, event(id))
		require.NoError(t, err)
		require.Len(t, got, 1)
		return got[0]
	}
	redeemed := func(id string) (grant.Grant, grant.Secret) {
		g := issued(id)
		_, token, err := first.Redeem(background, g.App, g.Code)
		require.NoError(t, err)
		return g, token
	}
	redeemed("warm") // the server knows the scripts now

	for _, c := range []struct {
		name string
		// prepare is not counted, and do is.
		prepare func(e *grant.Engine) (do func() error)
		want    []string
	}{
		{"an issue", func(e *grant.Engine) func() error {
			return func() error { _, err := e.Emit(background, event("issue")); return err }
		}, []string{"apply"}},
		{"an event that matches nothing", func(e *grant.Engine) func() error {
			ev := event("nothing")
			ev.App = "weather"
			return func() error { _, err := e.Emit(background, ev); return err }
		}, nil},
		{"a redemption", func(e *grant.Engine) func() error {
			g := issued("redeem")
			return func() error { _, _, err := e.Redeem(background, g.App, g.Code); return err }
		}, []string{"get", "apply"}},
		{"a use", func(e *grant.Engine) func() error {
			_, token := redeemed("use")
			return func() error { _, err := e.Use(background, token.Reveal(), write); return err }
		}, []string{"apply"}},
		{"a use of a token that is used up", func(e *grant.Engine) func() error {
			_, token := redeemed("used")
			for range 2 {
				_, err := first.Use(background, token.Reveal(), write)
				require.NoError(t, err)
			}
			return func() error {
				_, err := e.Use(background, token.Reveal(), write)
				require.ErrorIs(t, err, grant.ErrUsedUp)
				return nil
			}
		}, []string{"apply"}},
		{"a forged token", func(e *grant.Engine) func() error {
			return func() error {
				_, err := e.Use(background, "bhst_"+strings.Repeat("A", 400), write)
				require.ErrorIs(t, err, grant.ErrUnknown)
				return nil
			}
		}, nil},
		{"a revocation of a grant", func(e *grant.Engine) func() error {
			g, _ := redeemed("revoke")
			return func() error { return e.Revoke(background, g.Account, g.ID) }
		}, []string{"apply"}},
		{"once more", func(e *grant.Engine) func() error {
			g, _ := redeemed("again")
			require.NoError(t, first.Revoke(background, g.Account, g.ID))
			return func() error { return e.Revoke(background, g.Account, g.ID) }
		}, []string{"apply"}},
		{"a revocation of a grant that is not there", func(e *grant.Engine) func() error {
			g := issued("there")
			return func() error {
				require.ErrorIs(t, e.Revoke(background, "somebody-else", g.ID), grant.ErrUnknown)
				return nil
			}
		}, []string{"apply"}},
		{"a revocation by a token", func(e *grant.Engine) func() error {
			g, token := redeemed("token")
			return func() error { return e.RevokeToken(background, g.App, token) }
		}, []string{"apply"}},
		{"a revocation by a code", func(e *grant.Engine) func() error {
			g := issued("code")
			return func() error { return e.RevokeToken(background, g.App, g.Code) }
		}, []string{"apply"}},
		{"a revocation by another app", func(e *grant.Engine) func() error {
			_, token := redeemed("another")
			return func() error {
				require.ErrorIs(t, e.RevokeToken(background, "weather", token), grant.ErrUnknown)
				return nil
			}
		}, nil},
		{"a revocation of an app here", func(e *grant.Engine) func() error {
			g, _ := redeemed("app")
			return func() error { return e.RevokeApp(background, g.Account, g.App, group) }
		}, []string{"apply"}},
		{"a revocation of all of an account's grants", func(e *grant.Engine) func() error {
			g, _ := redeemed("all")
			return func() error { return e.RevokeAccount(background, g.Account) }
		}, []string{"apply"}},
	} {
		e := node()
		do := c.prepare(e)
		var got []string
		for _, line := range watch(t, server, func() { require.NoError(t, do(), c.name) }) {
			script := evalSha.FindStringSubmatch(line)
			require.NotNil(t, script, "%s: %q", c.name, line)
			got = append(got, names[script[1]])
		}
		require.Equal(t, c.want, got, fmt.Sprintf("%s: %q", c.name, got))
	}
}
