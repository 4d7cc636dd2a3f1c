package authz

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/internal/jose"
	"github.com/behest-go/behest/scope"
)

// Whatever an issuer may have signed, it is a delegation for what was wanted, or an error.
func FuzzJudge(f *testing.F) {
	f.Add(`{"iss":"https://social.example","aud":"https://api.example","sub":"a","client_id":"b","scope":"group:42/message.write","iat":1000,"exp":1100,"jti":"1","grant_id":"g","domain":"group:42","operation":"mention","event":"m1","act":{"sub":"b"}}`)
	f.Add(`{"iss":"https://social.example","aud":["https://api.example",""],"exp":1e3,"iat":-1}`)
	f.Add(`{"act":{"sub":[]},"cnf":null,"exp":1e300}`)
	f.Add(`null`)
	m := &Remote{issuer: "https://social.example", resource: "https://api.example", now: func() time.Time { return time.Unix(1000, 0) }}
	want := scope.MustParse("group:42/message.write")
	f.Fuzz(func(t *testing.T, payload string) {
		d, err := m.judge([]byte(payload), Call{Want: want})
		if err != nil {
			require.Nil(t, d)
			return
		}
		require.NotEmpty(t, d.Account)
		require.NotEmpty(t, d.App)
		require.NotEmpty(t, d.Grant)
		require.Equal(t, want, d.Scope)
		require.NoError(t, d.Granted().Allows(want))
		require.True(t, d.NotAfter.After(m.now()))
		require.LessOrEqual(t, d.NotAfter.Sub(d.IssuedAt), maxJWTLife)
	})
}

func FuzzMaxAge(f *testing.F) {
	for _, header := range []string{"public, max-age=300", "no-store", `max-age="1"`, "max-age=-1,,=", "max-age=99999999999999999999", "\x00"} {
		f.Add(header)
	}
	f.Fuzz(func(t *testing.T, header string) {
		age := maxAge([]string{header, header})
		require.GreaterOrEqual(t, age, time.Duration(0))
		require.Zero(t, age%time.Second)
	})
}

// A use answer and a refusal are read or they are not; nothing else comes of them.
func FuzzRefusedBy(f *testing.F) {
	f.Add(`{"error":"invalid_token","error_reason":"expired"}`)
	f.Add(`{"error":"invalid_token"}`)
	f.Add(`{"error":7}`)
	f.Add(`null`)
	f.Fuzz(func(t *testing.T, text string) {
		_ = refusedBy([]byte(text))
		code := codeIn([]byte(text))
		require.LessOrEqual(t, len(code), 42)
		require.NotContains(t, code, "\n")
	})
}

// A panic while the keys are fetched, such as of a transport that is not ours, is one request's: those who wait are told,
// and the next one asks again.
func TestRemoteKeysAfterAPanic(t *testing.T) {
	now, asked, begun := time.Unix(1000, 0), 0, make(chan struct{})
	k := &remoteKeys{now: func() time.Time { return now }}
	k.fetch = func(context.Context) (jose.Set, time.Duration, error) {
		if asked++; asked == 1 {
			close(begun)
			panic("transport")
		}
		return jose.Set{}, time.Minute, nil
	}
	waited := make(chan error)
	go func() {
		<-begun
		_, err := k.get(t.Context(), false)
		waited <- err
	}()
	require.PanicsWithValue(t, "transport", func() { _, _ = k.get(t.Context(), false) })
	require.ErrorContains(t, <-waited, "broke off")
	now = now.Add(jwksRetry)
	_, err := k.get(t.Context(), false)
	require.NoError(t, err)
	require.Equal(t, 2, asked)
}
