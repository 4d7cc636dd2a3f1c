package grant_test

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

func FuzzTriggerJSON(f *testing.F) {
	f.Add(triggerJSON)
	f.Add(`{"app":"a","on":"mention","in":"*","allow":["message.write"]}`)
	f.Add(`{"for":"1h","uses":-1}`)
	f.Add(`{"match":null,"allow":null}`)
	f.Add(`null`)
	f.Add(`[{"app":1}]`)
	f.Add(`{"app":"a","app":"b"}`)
	f.Fuzz(func(t *testing.T, text string) {
		var trigger grant.Trigger
		if err := trigger.UnmarshalJSON([]byte(text)); err != nil {
			require.ErrorIs(t, err, grant.ErrInvalid)
			require.Equal(t, grant.Trigger{}, trigger)
			return
		}
		again, err := json.Marshal(trigger)
		require.NoError(t, err)
		var back grant.Trigger
		require.NoError(t, json.Unmarshal(again, &back))
		if len(trigger.Match.Keywords) == 0 { // an empty list is none
			trigger.Match.Keywords = back.Match.Keywords
		}
		require.Equal(t, trigger, back)
		// Whatever it says, it makes an engine or a list of faults.
		c := newWorld(t, nil).config
		c.Triggers = []grant.Trigger{trigger}
		if _, err := grant.NewEngine(c); err != nil {
			require.ErrorIs(t, err, grant.ErrInvalid)
		}
	})
}

func FuzzEmit(f *testing.F) {
	f.Add("m1", "zhang-san", "42", "@bookbot", "/book", "k", "v", "")
	f.Add("", "", "", "", "", "", "", "")
	f.Add("m\x00", "a.b", "a/b:c", "\u2028<>", "\"\\", "", "\x7f", "aaaaaaaaaaaaaaaaaaaaaa")
	f.Add("\xff", "\xfe", "\xfd", "\xfc", "\xfb", "\xfa", "\xf9", "\xf8")
	f.Fuzz(func(t *testing.T, id, account, in, text, target, k, v, by string) {
		domain, err := scope.Domain{}.Child("group", in)
		if err != nil {
			return
		}
		w := newWorld(t, func(c *grant.Config) { c.Triggers[0].Chain = true })
		ev := mention(id)
		ev.Account, ev.Domain, ev.Text, ev.Target, ev.Data, ev.By = account, domain, text, target, map[string]string{k: v}, by
		got, err := w.Emit(ctx, ev)
		if err != nil {
			require.True(t, errors.Is(err, grant.ErrInvalid) || by != "" && errors.Is(err, grant.ErrUnknown), "%v", err)
			require.Empty(t, w.store.everything(t))
			return
		}
		require.Len(t, got, 1)
		again := w.emit(ev)
		require.Equal(t, got[0].Code.Reveal(), again.Code.Reveal())
		again.Code = got[0].Code
		require.Equal(t, exported(got[0]), exported(again), "what is stored is what was said")
		want, err := scope.New(domain, "message.write")
		require.NoError(t, err)
		d, err := w.Use(ctx, w.redeem(again), want)
		require.NoError(t, err)
		require.Equal(t, account, d.Account)
		require.Equal(t, id, d.Event)
		require.Equal(t, map[string]int{"issued": 1, "redeemed": 1, "used": 1}, w.whats(account))
		w.whole("fuzz")
	})
}
