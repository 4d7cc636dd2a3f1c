package grant_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

func TestSecret(t *testing.T) {
	const text = "open sesame"
	s, none := grant.NewSecret(text), grant.Secret{}
	require.Equal(t, text, s.Reveal())
	require.False(t, s.IsZero())
	require.Empty(t, none.Reveal())
	require.True(t, none.IsZero())
	require.Equal(t, none, grant.NewSecret(""))

	require.True(t, s.Equal(text))
	for _, other := range []string{"", "open", text + "!", "OPEN SESAME"} {
		require.False(t, s.Equal(other), other)
	}
	require.False(t, none.Equal(""), "the lack of a secret opens nothing")
	require.False(t, none.Equal("x"))

	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%p", "%T", "%20v", "%t"} {
		for _, v := range []any{s, &s, []grant.Secret{s}, map[string]*grant.Secret{"a": &s}, struct{ S grant.Secret }{s}, struct{ s grant.Secret }{s},
			struct{ s *grant.Secret }{&s}, struct{ s any }{s}, [1]any{s}, errors.Join(fmt.Errorf("e: %v", s))} {
			require.NotContains(t, fmt.Sprintf(verb, v), "sesame")
			require.NotContains(t, fmt.Sprintf(verb, v), fmt.Sprintf("%x", text))
		}
	}
	require.Equal(t, "[redacted]", fmt.Sprint(s))
	require.Equal(t, "[redacted]", s.String())
	require.Empty(t, none.String())
	require.Empty(t, fmt.Sprint(none))

	b, err := json.Marshal(map[string]any{"a": s, "b": &s, "c": none, "d": map[grant.Secret]int{s: 1}})
	require.NoError(t, err)
	require.JSONEq(t, `{"a":"[redacted]","b":"[redacted]","c":"","d":{"[redacted]":1}}`, string(b))

	var log bytes.Buffer
	for _, h := range []slog.Handler{slog.NewJSONHandler(&log, nil), slog.NewTextHandler(&log, nil)} {
		slog.New(h).With("w", s).Info("m", "s", s, "p", &s, "in", struct{ S grant.Secret }{s}, slog.Any("any", []any{s}))
	}
	require.NotContains(t, log.String(), "sesame")
	require.Contains(t, log.String(), "[redacted]")
}

// What a Permit says is the server's own affair, except for its no.
func TestPermitErrorsAreNotOurs(t *testing.T) {
	w := newWorld(t, nil)
	token := w.token("m1")
	type own struct{ error }
	for _, theirs := range []error{grant.ErrExpired, grant.ErrUsedUp, grant.ErrRevoked, grant.ErrUnknown, grant.ErrInvalid, grant.ErrLimited,
		scope.ErrWrongAction, scope.ErrWrongDomain, fmt.Errorf("within: %w", grant.ErrExpired), own{grant.ErrRevoked}} {
		w.setPermit(func(ctxT, grant.Access) error { return theirs })
		_, err := w.Use(ctx, token, write)
		require.Error(t, err)
		require.Empty(t, grant.Reason(err))
		require.NotErrorIs(t, err, grant.ErrUnknown)
		require.NotErrorIs(t, err, grant.ErrInvalid)
		require.Equal(t, theirs.Error(), err.Error())
		_, err = w.Emit(ctx, mention("m2"))
		require.Error(t, err)
		require.NotErrorIs(t, err, grant.ErrInvalid)
		require.Zero(t, w.whats("zhang-san")["refused"])
	}
	// What else is in it can be found.
	w.setPermit(func(ctxT, grant.Access) error { return own{errStore} })
	_, err := w.Use(ctx, token, write)
	var o own
	require.ErrorAs(t, err, &o)
	w.setPermit(func(ctxT, grant.Access) error { return errors.Join(errStore, grant.ErrDenied) })
	_, err = w.Use(ctx, token, write)
	require.ErrorIs(t, err, errStore)
	require.Equal(t, "rights_changed", grant.Reason(err))
}
