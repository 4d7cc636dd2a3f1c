package authz

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
)

// The hash of "password" in the reference implementation's test (phc-winner-argon2, test.c).
const argonVector = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"

func TestArgonVector(t *testing.T) {
	h, err := parseHash(argonVector)
	require.NoError(t, err)
	c := newClients()
	for secret, want := range map[string]bool{"password": true, "Password": false, "": false, "password\x00": false} {
		got, err := c.compare(t.Context(), h, secret)
		require.NoError(t, err)
		require.Equal(t, want, got, secret)
	}
	require.Equal(t, argonVector, h.String())
}

func TestHashSecret(t *testing.T) {
	secret := grant.NewSecret("chosen by a person")
	one, err := HashSecret(secret)
	require.NoError(t, err)
	two, err := HashSecret(secret)
	require.NoError(t, err)
	require.NotEqual(t, one.Reveal(), two.Reveal(), "salted")
	require.True(t, strings.HasPrefix(one.Reveal(), "$argon2id$v=19$m=19456,t=2,p=1$"))
	require.NotContains(t, fmt.Sprintf("%v %+v", one, one), "argon2id")
	h, err := parseHash(one.Reveal())
	require.NoError(t, err)
	same, err := newClients().compare(t.Context(), h, secret.Reveal())
	require.NoError(t, err)
	require.True(t, same)
	for _, bad := range []string{"", "1234567", strings.Repeat("x", 257), "1234567\xff", "1234567\x00"} {
		_, err := HashSecret(grant.NewSecret(bad))
		require.Error(t, err)
		if bad != "" {
			require.NotContains(t, err.Error(), bad)
		}
	}
}

func TestParseHash(t *testing.T) {
	const good = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA"
	h, err := parseHash(good)
	require.NoError(t, err)
	require.Equal(t, []uint32{19456, 2, 1}, []uint32{h.memory, h.time, uint32(h.threads)})
	for _, parameters := range []string{"m=47104,t=1,p=1", "m=12288,t=3,p=1", "m=9216,t=4,p=1", "m=7168,t=5,p=1", "m=65536,t=3,p=4", "m=65536,t=4,p=1"} {
		_, err := parseHash(strings.Replace(good, "m=19456,t=2,p=1", parameters, 1))
		require.NoError(t, err, parameters)
	}
	with := func(from, to string) string { return strings.Replace(good, from, to, 1) }
	for name, text := range map[string]string{
		"nothing":            "",
		"argon2i":            with("argon2id", "argon2i"),
		"argon2d":            with("argon2id", "argon2d"),
		"bcrypt":             "$2y$10$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234",
		"no version":         with("$v=19", ""),
		"version 16":         with("v=19", "v=16"),
		"m a little small":   with("m=19456", "m=7167"),
		"m too large":        with("m=19456", "m=65537"),
		"m of terabytes":     with("m=19456", "m=4294967295"),
		"m beyond numbers":   with("m=19456", "m=99999999999999999999"),
		"m with zeros":       with("m=19456", "m=019456"),
		"m with a sign":      with("m=19456", "m=+19456"),
		"m empty":            with("m=19456", "m="),
		"t zero":             with("t=2", "t=0"),
		"t too large":        with("t=2", "t=11"),
		"p zero":             with("p=1", "p=0"),
		"p too large":        with("p=1", "p=5"),
		"too cheap":          with("m=19456,t=2", "m=19456,t=1"),
		"too dear":           with("m=19456,t=2", "m=65536,t=5"),
		"another order":      with("m=19456,t=2,p=1", "t=2,m=19456,p=1"),
		"a key id":           with("p=1", "p=1,keyid=AA"),
		"no lanes":           with(",p=1", ""),
		"salt too short":     with("c2FsdHNhbHQ", "c2FsdA"),
		"salt too long":      with("c2FsdHNhbHQ", strings.Repeat("AAAA", 17)),
		"salt not canonical": with("c2FsdHNhbHQ", "c2FsdHNhbHR"),
		"salt with padding":  with("c2FsdHNhbHQ", "c2FsdHNhbHQ="),
		"hash too short":     with("aGFzaGhhc2hoYXNoaGFzaA", "aGFzaA"),
		"hash too long":      with("aGFzaGhhc2hoYXNoaGFzaA", strings.Repeat("AAAA", 22)),
		"a line break":       with("aGFz", "aG\nFz"),
		"more":               good + "$",
		"a space before":     " " + good,
		"huge":               good + strings.Repeat("A", 1<<20),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseHash(text)
			require.Error(t, err)
			require.NotContains(t, err.Error(), "aGFz")
		})
	}
}

func FuzzParseHash(f *testing.F) {
	for _, seed := range []string{argonVector, "", "$argon2id$v=19$m=7168,t=5,p=4$AAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA", "$argon2id$v=19$m=1,t=1,p=1$$"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		h, err := parseHash(text)
		if err != nil {
			return
		}
		require.Equal(t, text, h.String(), "one spelling")
		require.LessOrEqual(t, h.memory, uint32(64<<10))
		require.LessOrEqual(t, h.cost(), uint32(262144))
		require.GreaterOrEqual(t, h.cost(), uint32(35840))
	})
}

func humanClients(t testing.TB) *Clients {
	t.Helper()
	hash, err := HashSecret(grant.NewSecret("chosen by a person"))
	require.NoError(t, err)
	c, err := NewClients([]App{{ID: "human", SecretHash: hash}, {ID: "machine", Secret: grant.NewSecret("made by a machine")}})
	require.NoError(t, err)
	return c
}

// busy are the same clients when all places are taken.
func busy(c Clients) *Clients {
	c.hashing = make(chan struct{}, 1)
	c.hashing <- struct{}{}
	return &c
}

func secretRequest(ctx context.Context, id, secret string) *http.Request {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "/", strings.NewReader(url.Values{"client_id": {id}, "client_secret": {secret}}.Encode()))
	if err != nil {
		panic(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return r
}

// Whoever is refused has cost one slow hash, known or not, of whatever kind its secret is: a request that cannot have
// one is not refused but told to come again. A right secret of a machine needs none.
func TestRefusalsCostTheSame(t *testing.T) {
	c := humanClients(t)
	for who, want := range map[[2]string]bool{
		{"human", "chosen by a person"}: true, {"machine", "made by a machine"}: true,
		{"human", "chosen by another"}: false, {"machine", "chosen by a person"}: false, {"nobody", "chosen by a person"}: false, {"human", ""}: false,
	} {
		app, err := c.Authenticate(secretRequest(t.Context(), who[0], who[1]))
		require.Equal(t, want, err == nil, who)
		if want {
			require.Equal(t, who[0], app.ID)
			require.True(t, app.SecretHash.IsZero())
		} else {
			require.Equal(t, errClient, err)
		}
	}
	for _, who := range [][2]string{{"human", "chosen by a person"}, {"human", "chosen by another"}, {"machine", "chosen by another"}, {"nobody", "chosen by another"}, {"", ""}} {
		synctest.Test(t, func(t *testing.T) {
			c := busy(*c)
			began := time.Now()
			_, err := c.Authenticate(secretRequest(t.Context(), who[0], who[1]))
			require.Equal(t, errHashing, err, who)
			require.Equal(t, hashWait, time.Since(began))
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err = c.Authenticate(secretRequest(ctx, who[0], who[1]))
			require.ErrorIs(t, err, context.DeadlineExceeded, who)
		})
	}
	app, err := busy(*c).Authenticate(secretRequest(t.Context(), "machine", "made by a machine"))
	require.NoError(t, err)
	require.Equal(t, "machine", app.ID)

	// Where nobody has a slow hash, nobody pays for one.
	fast, err := NewClients([]App{{ID: "machine", Secret: grant.NewSecret("made by a machine")}})
	require.NoError(t, err)
	_, err = busy(*fast).Authenticate(secretRequest(t.Context(), "nobody", "x"))
	require.Equal(t, errClient, err)
}

// However many come at once, as many hash as there are places; the others wait, and all of them are answered.
func TestHashingIsBounded(t *testing.T) {
	c := humanClients(t)
	c.hashing = make(chan struct{}, 1)
	c.hashing <- struct{}{} // the one place is taken
	var answered atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			_, err := c.Authenticate(secretRequest(context.Background(), "human", "chosen by a person"))
			answered.Add(1)
			if err != nil {
				t.Error(err)
			}
		})
	}
	require.Zero(t, answered.Load())
	<-c.hashing
	wg.Wait()
	require.EqualValues(t, 8, answered.Load())
	require.Empty(t, c.hashing, "every place is free again")
}

// Who gets no turn is told to come again.
func TestHashingBusy(t *testing.T) {
	c := humanClients(t)
	synctest.Test(t, func(t *testing.T) {
		c := busy(*c)
		rec := httptest.NewRecorder()
		(&RevocationEndpoint{Clients: c}).ServeHTTP(rec, secretRequest(t.Context(), "human", "chosen by a person"))
		require.Equal(t, http.StatusServiceUnavailable, rec.Code)
		require.Equal(t, "1", rec.Header().Get("Retry-After"))
		require.Contains(t, rec.Body.String(), "temporarily_unavailable")
	})
}
