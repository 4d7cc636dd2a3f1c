package grant_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
)

func stateless() grant.Trigger {
	t := onMention()
	t.Stateless, t.Uses, t.For = true, grant.Unlimited, 5*time.Minute
	return t
}

// A token that nobody counts or revokes is only for what was never to be counted, and is over soon.
func TestTriggerStateless(t *testing.T) {
	config := func(trigger grant.Trigger, realNames bool) grant.Config {
		return newWorld(t, func(c *grant.Config) {
			c.Apps[0].RealNames = true
			c.Triggers = nil
		}).configWith(trigger, realNames)
	}
	_, err := grant.NewEngine(config(stateless(), true))
	require.NoError(t, err)
	for want, change := range map[string]func(*grant.Trigger){
		"stateless: nobody counts the uses of such a token: uses must be Unlimited (-1)": func(t *grant.Trigger) { t.Uses = 0 },
		"uses must be Unlimited (-1)":          func(t *grant.Trigger) { t.Uses = 5 },
		"for is 5m0.001s, at most 5m0s":        func(t *grant.Trigger) { t.For = 5*time.Minute + time.Millisecond },
		"for is 10m0s, at most 5m0s":           func(t *grant.Trigger) { t.For = 0 }, // a mention's default
		`the app "bookbot" sees no real names`: func(*grant.Trigger) {},
	} {
		trigger := stateless()
		change(&trigger)
		_, err := grant.NewEngine(config(trigger, !strings.Contains(want, "real names")))
		require.ErrorIs(t, err, grant.ErrInvalid)
		require.ErrorContains(t, err, `trigger "mention"`)
		require.ErrorContains(t, err, want)
	}

	text, err := json.Marshal(stateless())
	require.NoError(t, err)
	require.Contains(t, string(text), `"stateless":true`)
	var back grant.Trigger
	require.NoError(t, json.Unmarshal(text, &back))
	require.Equal(t, stateless(), back)
}

func (w *world) configWith(trigger grant.Trigger, realNames bool) grant.Config {
	c := w.config
	c.Apps = []grant.App{bookbot()}
	c.Apps[0].RealNames = realNames
	c.Triggers = []grant.Trigger{trigger}
	return c
}

// P4: what a grant is was fixed when it was issued, and is what the ledger and the store say of it.
func TestGrantStateless(t *testing.T) {
	w := newWorld(t, func(c *grant.Config) {
		c.Apps[0].RealNames = true
		c.Triggers[0] = stateless()
	})
	g := w.emit(mention("m1"))
	require.True(t, g.Stateless)
	_, err := w.Change(ctx, "li-si", func(c *grant.Config) error {
		c.Triggers[0].Stateless = false
		return nil
	})
	require.NoError(t, err)
	redeemed, _, err := w.Redeem(ctx, "bookbot", g.Code)
	require.NoError(t, err)
	require.True(t, redeemed.Stateless)
	require.Equal(t, 1, w.whats("zhang-san")["redeemed"])
	require.False(t, w.emit(mention("m2")).Stateless)
}
