package grant_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

// What platforms publish, as triggers: so often, so long, and not once more or a microsecond longer.
func TestPublishedQuotas(t *testing.T) {
	const unlimited = grant.Unlimited
	custom := func(name string) grant.Operation { return grant.Operation(name) }
	for _, q := range []struct {
		platform string
		on       grant.Operation
		life     time.Duration
		uses     int
		event    grant.Event
	}{
		{"WeChat: a message to the account", custom("message.send"), 48 * time.Hour, 5, grant.Event{Text: "你好"}},
		{"WeChat: a menu that is clicked", custom("menu.click"), time.Minute, 3, grant.Event{Target: "menu-7"}},
		{"WeChat: following the account", custom("account.follow"), time.Minute, 3, grant.Event{}},
		{"WeChat: scanning a QR code", custom("code.scan"), time.Minute, 3, grant.Event{Target: "scene-1"}},
		{"WeChat: a payment", custom("payment.make"), 48 * time.Hour, unlimited, grant.Event{}},
		{"Slack: response_url", grant.Command, 30 * time.Minute, 5, grant.Event{Target: "/weather"}},
		{"Slack: trigger_id", grant.ButtonPress, 3 * time.Second, 1, grant.Event{App: "bookbot", Target: "open"}},
		{"Feishu: a card", grant.ButtonPress, 30 * time.Minute, 2, grant.Event{App: "bookbot", Target: "card-1"}},
		{"Lark: a card", grant.ButtonPress, 30 * time.Minute, 3, grant.Event{App: "bookbot", Target: "card-1"}},
		{"WeCom: response_url", grant.Mention, time.Hour, 1, grant.Event{App: "bookbot"}},
		{"QQ: a mention in a group", grant.Mention, 5 * time.Minute, 5, grant.Event{App: "bookbot"}},
		{"QQ: a direct message", custom("message.send"), time.Hour, 5, grant.Event{}},
		{"Discord: an interaction", grant.Command, 15 * time.Minute, unlimited, grant.Event{Target: "/roll"}},
		{"Discord: of an app that one user installed", grant.Command, 15 * time.Minute, 5, grant.Event{Target: "/roll"}},
		{"Mattermost: response_url", grant.Command, 30 * time.Minute, 5, grant.Event{Target: "/poll"}},
		{"LINE: replyToken", custom("message.send"), time.Minute, 1, grant.Event{}},
	} {
		t.Run(q.platform, func(t *testing.T) {
			w := newWorld(t, func(c *grant.Config) {
				c.Triggers = []grant.Trigger{{App: "bookbot", On: q.on, In: "*", Allow: []string{"message.write"}, For: q.life, Uses: q.uses, Consent: grant.Implied}}
			})
			emit := func(id string) string {
				ev := q.event
				ev.ID, ev.Operation, ev.Account, ev.Domain = id, q.on, "zhang-san", scope.MustDomain("direct:bookbot")
				return w.redeem(w.emit(ev))
			}
			want := scope.MustParse("direct:bookbot/message.write")

			// To the last use, at the last microsecond.
			token, idle := emit("1"), emit("2")
			w.clock.advance(q.life - time.Microsecond)
			n := q.uses
			if n == unlimited {
				n = 1000
			}
			for i := range n {
				d, err := w.Use(ctx, token, want)
				require.NoError(t, err, "use %d", i+1)
				if q.uses == unlimited {
					require.Equal(t, unlimited, d.Left)
				} else {
					require.Equal(t, n-i-1, d.Left)
				}
			}
			if q.uses != unlimited {
				_, err := w.Use(ctx, token, want)
				require.ErrorIs(t, err, grant.ErrUsedUp)
			}
			// And then it is over, also for one that was never used.
			w.clock.advance(time.Microsecond)
			for _, over := range []string{token, idle} {
				_, err := w.Use(ctx, over, want)
				require.ErrorIs(t, err, grant.ErrExpired)
			}
			// Each operation opens a quota of its own.
			_, err := w.Use(ctx, emit("3"), want)
			require.NoError(t, err)
		})
	}
}

// The two clocks: how long a code waits does not shorten how long its token lives.
func TestTwoClocks(t *testing.T) {
	for _, within := range []time.Duration{time.Second, time.Minute, time.Hour} {
		t.Run(fmt.Sprint(within), func(t *testing.T) {
			w := newWorld(t, func(c *grant.Config) { c.Triggers[0].RedeemWithin, c.Triggers[0].For = within, time.Second })
			early, late := w.emit(mention("m1")), w.emit(mention("m2"))
			require.Equal(t, start.Add(within), early.RedeemBy)
			w.clock.advance(within - time.Microsecond)
			token := w.redeem(early)
			w.clock.advance(time.Second - time.Microsecond)
			_, err := w.Use(ctx, token, write)
			require.NoError(t, err)
			w.clock.advance(time.Microsecond)
			_, err = w.Use(ctx, token, write)
			require.ErrorIs(t, err, grant.ErrExpired)
			w.clock.set(start.Add(within))
			_, _, err = w.Redeem(ctx, "bookbot", late.Code)
			require.ErrorIs(t, err, grant.ErrExpired)
			require.Equal(t, "expired", w.emit(mention("m2")).State)
		})
	}
}

// A clock with nanoseconds and another zone: what is told is what is kept.
func TestClockIsCutToMicroseconds(t *testing.T) {
	zone := time.FixedZone("CST", 8*3600)
	now := start.Add(999).In(zone)
	w := newWorld(t, func(c *grant.Config) { c.Now = func() time.Time { return now } })
	ev := mention("m1")
	ev.At = now.Add(-time.Second)
	g := w.emit(ev)
	require.Equal(t, start, g.IssuedAt)
	require.Equal(t, start.Add(time.Minute), g.RedeemBy)
	require.Equal(t, start.Add(-time.Second), g.Event.At)
	redeemed, token, err := w.Redeem(ctx, "bookbot", g.Code)
	require.NoError(t, err)
	d, err := w.Use(ctx, token.Reveal(), write)
	require.NoError(t, err)
	require.Equal(t, redeemed.NotAfter, d.NotAfter)
	require.Equal(t, start.Add(10*time.Minute), d.NotAfter)
}

// Clocks that go backwards harm nobody: what is over comes back only as far as the clock does, and nothing is spent twice.
func TestClockGoesBackwards(t *testing.T) {
	w := newWorld(t, func(c *grant.Config) { c.Triggers[0].PerMinute = 2 })
	token := w.token("m1")
	w.clock.set(start.Add(-time.Hour))
	again := w.emit(mention("m1"))
	require.Equal(t, "redeemed", again.State)
	for left := 2; left >= 0; left-- {
		d, err := w.Use(ctx, token, write)
		require.NoError(t, err)
		require.Equal(t, left, d.Left)
	}
	w.clock.set(start.Add(time.Hour))
	_, err := w.Use(ctx, token, write)
	require.ErrorIs(t, err, grant.ErrExpired)
	w.clock.set(start)
	_, err = w.Use(ctx, token, write)
	require.ErrorIs(t, err, grant.ErrUsedUp)
	w.emit(mention("m2"))
	_, err = w.Emit(ctx, mention("m3"))
	require.ErrorIs(t, err, grant.ErrLimited)
	require.NotPanics(t, func() {
		w.clock.set(time.Unix(-1, 0))
		w.token("before 1970")
	})
}
