package grant_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/stores"
	"github.com/behest-go/behest/scope"
)

// P3 Counted: answers may be lost as often as they like: what was spent under one key is one use, and the last use has
// one winner.
func TestP3SpendOnce(t *testing.T) {
	stores.Each(t, func(t *testing.T, s stores.Maker) {
		w := on(s)(t, nil)
		token, nodes := w.token("m1"), w.nodes()
		spend := func(node int, key string) (*grant.Delegation, bool, error) {
			d, err := nodes[node%2].Prepare(ctx, token, write)
			if err != nil {
				return nil, false, err
			}
			again, err := d.SpendOnce(ctx, key, [32]byte{})
			return d, again, err
		}
		for round, left := range []int{2, 1} {
			again := make([]bool, 64)
			errs := together(64, func(i int) error {
				d, repeated, err := spend(i, fmt.Sprint("key", round))
				if err == nil && (d.Left != left || !d.Spent()) {
					return fmt.Errorf("%d left", d.Left)
				}
				again[i] = repeated
				return err
			})
			require.Equal(t, 64, winners(t, errs))
			firsts := 0
			for _, a := range again {
				if !a {
					firsts++
				}
			}
			require.Equal(t, 1, firsts)
		}
		errs := together(64, func(i int) error { _, _, err := spend(i, fmt.Sprint("own", i)); return err })
		require.Equal(t, 1, winners(t, errs, grant.ErrUsedUp))
		d, again, err := spend(1, "key0")
		require.NoError(t, err, "also when there is nothing left: this use was spent before")
		require.True(t, again)
		require.Zero(t, d.Left)
		require.Equal(t, 3, w.whats("zhang-san")["used"])
	})
}

func TestSpendOnce(t *testing.T) {
	w := newWorld(t, nil)
	token := w.token("m1")
	d := w.prepare(token)
	w.store.reset()
	again, err := d.SpendOnce(ctx, "k", [32]byte{1})
	require.NoError(t, err)
	require.False(t, again)
	require.Equal(t, map[string]int{"apply": 1}, w.store.calls)
	require.Equal(t, 2, d.Left)

	other := w.prepare(token)
	_, err = other.SpendOnce(ctx, "k", [32]byte{2})
	require.ErrorIs(t, err, grant.ErrInvalid, "another request")
	require.False(t, other.Spent())
	_, err = w.prepare(token).SpendOnce(ctx, "", [32]byte{})
	require.ErrorIs(t, err, grant.ErrInvalid)

	// The answer was lost on the way from the store, and then again.
	w.store.reset()
	w.store.after = func(int, string) error { return errStore }
	_, err = w.prepare(token).SpendOnce(ctx, "lost", [32]byte{})
	require.ErrorIs(t, err, errStore)
	w.store.reset()
	again, err = w.prepare(token).SpendOnce(ctx, "lost", [32]byte{})
	require.NoError(t, err)
	require.True(t, again)
	require.Equal(t, 1, w.left(token))

	// What is refused now is refused, whatever was spent before.
	w.setPermit(allow())
	_, err = w.prepare(token).SpendOnce(ctx, "k", [32]byte{1})
	require.ErrorIs(t, err, grant.ErrDenied)
	w.setPermit(nil)
	require.NoError(t, w.Revoke(ctx, "zhang-san", d.Grant))
	_, err = w.prepare(token).SpendOnce(ctx, "k", [32]byte{1})
	require.ErrorIs(t, err, grant.ErrRevoked)
}

// What a resource server in another process reads is what the server wrote.
func TestDelegationJSON(t *testing.T) {
	w := newWorld(t, func(c *grant.Config) { c.Triggers[0].Allow = []string{"message.write", "member.read"} })
	d, err := w.Use(ctx, w.token("m1"), scope.MustParse("group:42/thread:7/message.write"))
	require.NoError(t, err)
	text, err := json.Marshal(d)
	require.NoError(t, err)
	require.JSONEq(t, fmt.Sprintf(`{"account":"zhang-san","app":"bookbot","domain":"group:42/thread:7","scope":"group:42/thread:7/message.write",
		"granted":"group:42/member.read group:42/message.write","grant":%q,"trigger":"mention","operation":"mention","event":"m1",
		"iat":%d,"exp":%d,"uses":3,"left":2}`, d.Grant, start.Unix(), start.Add(10*time.Minute).Unix()), string(text))
	var back grant.Delegation
	require.NoError(t, json.Unmarshal([]byte(strings.Replace(string(text), "{", `{"new":[1],`, 1)), &back))
	require.Equal(t, d.Granted(), back.Granted())
	require.Equal(t, d.GrantedIn(), back.GrantedIn())
	require.Equal(t, d.NotAfter.Truncate(time.Second), back.NotAfter)
	require.True(t, back.Spent())
	require.ErrorIs(t, back.Spend(ctx, nil), grant.ErrInvalid)
	again, err := json.Marshal(&back)
	require.NoError(t, err)
	require.JSONEq(t, string(text), string(again))

	unlimited := newWorld(t, func(c *grant.Config) { c.Triggers[0].Uses = grant.Unlimited })
	d, err = unlimited.Use(ctx, unlimited.token("m1"), write)
	require.NoError(t, err)
	text, err = json.Marshal(d)
	require.NoError(t, err)
	require.NotContains(t, string(text), "uses")
	require.NotContains(t, string(text), "left")
	require.NoError(t, json.Unmarshal(text, &back))
	require.Equal(t, grant.Unlimited, back.Left)
	require.Equal(t, grant.Unlimited, back.Uses)
}

const delegationText = `{"account":"a","app":"b","domain":"group:42","scope":"group:42/message.write","granted":"group:42/message.write","grant":"g","exp":1,"uses":3,"left":2}`

// What is not whole is no delegation.
func TestDelegationJSONMalformed(t *testing.T) {
	require.NoError(t, new(grant.Delegation).UnmarshalJSON([]byte(delegationText)))
	for _, change := range [][2]string{
		{`"account":"a",`, ``}, {`"app":"b"`, `"app":""`}, {`"grant":"g",`, ``}, {`"exp":1`, `"exp":0`}, {`"exp":1`, `"exp":"1"`},
		{`"granted":"group:42/message.write",`, ``}, {`"granted":"group:42/message.write"`, `"granted":"group:42/message.write group:7/message.write"`},
		{`"granted":"group:42/message.write"`, `"granted":"group:42/member.read"`}, {`"granted":"group:42/message.write"`, `"granted":"group:4/message.write"`},
		{`"domain":"group:42",`, ``}, {`"domain":"group:42"`, `"domain":"group:42/thread:1"`}, {`"scope":"group:42/message.write"`, `"scope":"x"`},
		{`"scope":"group:42/message.write"`, `"scope":"group:42/thread:1/message.write"`},
		{`"uses":3,`, ``}, {`,"left":2`, ``}, {`"uses":3`, `"uses":0`}, {`"left":2`, `"left":-1`}, {delegationText, `null`}, {delegationText, `[]`}, {delegationText, `{}`}, {delegationText, ``},
	} {
		text := strings.Replace(delegationText, change[0], change[1], 1)
		var d grant.Delegation
		require.ErrorIs(t, d.UnmarshalJSON([]byte(text)), grant.ErrInvalid, text)
		require.Equal(t, grant.Delegation{}, d)
	}
}

func FuzzDelegationJSON(f *testing.F) {
	f.Add(delegationText)
	f.Add(`{"account":"a","app":"b","domain":"group:42","granted":"group:42/message.write","grant":"g","exp":1}`)
	f.Add(`null`)
	f.Fuzz(func(t *testing.T, text string) {
		var d, back grant.Delegation
		if err := d.UnmarshalJSON([]byte(text)); err != nil {
			require.ErrorIs(t, err, grant.ErrInvalid)
			require.Equal(t, grant.Delegation{}, d)
			return
		}
		require.True(t, d.GrantedIn().Covers(d.Domain))
		again, err := json.Marshal(d)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(again, &back))
		require.Equal(t, d, back)
	})
}

// What is used together keeps nothing of another's: neither while others are made, nor afterwards.
func TestDelegationsOfUsesTogether(t *testing.T) {
	w := newWorld(t, func(c *grant.Config) {
		c.Triggers[0].Uses = grant.Unlimited
		c.Triggers[0].Delegates = []string{"weather"}
	})
	type use struct{ account, event, token string }
	var all []use
	for i := range 16 {
		ev := mention(fmt.Sprint("m", i, strings.Repeat("x", 10*i)))
		ev.Account = fmt.Sprint("account-", i, strings.Repeat("y", 7*i))
		token := w.redeem(w.emit(ev))
		all = append(all, use{ev.Account, ev.ID, token})
		if i%4 == 0 {
			_, child := w.derive("weather", token, grant.Grant{})
			all = append(all, use{ev.Account, ev.ID, child})
		}
	}
	var held [16][]*grant.Delegation
	var of [16][]use
	for _, err := range together(16, func(i int) error {
		for n := range 200 {
			u := all[(n*7+i*3)%len(all)]
			d, err := w.UseFunc(ctx, u.token, func() (scope.Scope, error) {
				if _, err := w.Use(ctx, all[n%len(all)].token, write); err != nil {
					return scope.Scope{}, err
				}
				return write, nil
			})
			if err != nil {
				return err
			}
			held[i], of[i] = append(held[i], d), append(of[i], u)
		}
		return nil
	}) {
		require.NoError(t, err)
	}
	for i := range held {
		for n, d := range held[i] {
			require.Equal(t, of[i][n].account, d.Account)
			require.Equal(t, of[i][n].event, d.Event)
			require.Equal(t, group, d.GrantedIn())
			require.Equal(t, "message.write", strings.TrimPrefix(d.Granted().String(), "group:42/"))
			require.Contains(t, []string{"bookbot", "weather"}, d.App)
		}
	}
}
