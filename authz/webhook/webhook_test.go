package webhook_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz/webhook"
)

const (
	published   = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" // of the Standard Webhooks specification
	publishedID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
)

var at = time.Unix(1614265330, 0)

func key(t testing.TB, text string) webhook.Key {
	k, err := webhook.ParseKey(text)
	require.NoError(t, err)
	return k
}

func keys(t testing.TB, texts []string) []webhook.Key {
	var out []webhook.Key
	for _, text := range texts {
		out = append(out, key(t, text))
	}
	return out
}

// The vectors are for other languages; this is ours.
func TestVectors(t *testing.T) {
	raw, err := os.ReadFile("testdata/vectors.json")
	require.NoError(t, err)
	var file struct {
		Vectors []struct {
			Name       string
			SignWith   []string `json:"sign_with"`
			VerifyWith []string `json:"verify_with"`
			Now        int64
			ID         string `json:"webhook-id"`
			Timestamp  string `json:"webhook-timestamp"`
			Signature  string `json:"webhook-signature"`
			Body       string
			Error      string
		}
	}
	require.NoError(t, json.Unmarshal(raw, &file))
	require.Equal(t, 34, len(file.Vectors))
	sentinels := map[string]error{"header": webhook.ErrHeader, "timestamp": webhook.ErrTimestamp, "signature": webhook.ErrSignature}
	for _, v := range file.Vectors {
		t.Run(v.Name, func(t *testing.T) {
			h := http.Header{}
			if v.SignWith != nil {
				require.NoError(t, webhook.Sign(h, v.ID, at, []byte(v.Body), keys(t, v.SignWith)...))
				require.Equal(t, v.Signature, h.Get("webhook-signature"))
				require.Equal(t, v.Timestamp, h.Get("webhook-timestamp"))
				require.Equal(t, v.ID, h.Get("webhook-id"))
			}
			h.Set("webhook-id", v.ID)
			h.Set("webhook-timestamp", v.Timestamp)
			h.Set("webhook-signature", v.Signature)
			id, err := webhook.Verify(h, []byte(v.Body), time.Unix(v.Now, 0), keys(t, v.VerifyWith)...)
			if v.Error == "" {
				require.NoError(t, err)
				require.Equal(t, v.ID, id)
				return
			}
			require.ErrorIs(t, err, sentinels[v.Error])
			require.ErrorIs(t, err, webhook.ErrRefused)
			require.Empty(t, id)
		})
	}
}

func TestHeadersAreTakenOnce(t *testing.T) {
	k := key(t, published)
	for _, name := range []string{webhook.HeaderID, webhook.HeaderTimestamp, webhook.HeaderSignature} {
		h := http.Header{}
		require.NoError(t, webhook.Sign(h, "m", at, nil, k))
		h.Add(name, h.Get(name))
		_, err := webhook.Verify(h, nil, at, k)
		require.ErrorIs(t, err, webhook.ErrHeader, "repeated %s", name)
		h.Del(name)
		_, err = webhook.Verify(h, nil, at, k)
		require.ErrorIs(t, err, webhook.ErrHeader, "missing %s", name)
	}
}

func TestEveryByteOfAnID(t *testing.T) {
	k := key(t, published)
	for b := range 256 {
		id := "a" + string([]byte{byte(b)})
		good := b > ' ' && b <= '~' && b != '.'
		err := webhook.Sign(http.Header{}, id, at, nil, k)
		require.Equal(t, good, err == nil, "byte %#x", b)
		if !good {
			require.ErrorIs(t, err, webhook.ErrID)
		}
		h := http.Header{}
		require.NoError(t, webhook.Sign(h, "a", at, nil, k))
		h[webhook.HeaderID] = []string{id}
		_, err = webhook.Verify(h, nil, at, k)
		require.Equal(t, !good, err != nil && strings.Contains(err.Error(), "header"), "byte %#x", b)
	}
	require.NoError(t, webhook.Sign(http.Header{}, strings.Repeat("i", 128), at, nil, k))
	require.ErrorIs(t, webhook.Sign(http.Header{}, strings.Repeat("i", 129), at, nil, k), webhook.ErrID)
	require.ErrorIs(t, webhook.Sign(http.Header{}, "", at, nil, k), webhook.ErrID)
}

func TestSignRefuses(t *testing.T) {
	h := http.Header{}
	require.ErrorIs(t, webhook.Sign(h, "m", at, nil), webhook.ErrKey)
	require.ErrorIs(t, webhook.Sign(h, "m", at, nil, webhook.Key{}), webhook.ErrKey)
	require.ErrorIs(t, webhook.Sign(h, "m", at, nil, webhook.NewSecret(), webhook.NewSigningKey().Public()), webhook.ErrKey)
	require.ErrorIs(t, webhook.Sign(h, "m", at, nil, make([]webhook.Key, 17)...), webhook.ErrKey)
	require.Error(t, webhook.Sign(h, "m", time.Unix(-1, 0), nil, webhook.NewSecret()))
	require.Empty(t, h, "the headers are untouched")
}

func TestVerifyWithoutUsableKeys(t *testing.T) {
	h := http.Header{}
	require.NoError(t, webhook.Sign(h, "m", at, nil, webhook.NewSecret()))
	for _, ks := range [][]webhook.Key{nil, {{}}, {webhook.NewSecret(), {}}, make([]webhook.Key, 17)} {
		_, err := webhook.Verify(h, nil, at, ks...)
		require.ErrorIs(t, err, webhook.ErrKey)
		require.NotErrorIs(t, err, webhook.ErrRefused, "a fault of the configuration is not the sender's")
	}
}

// Sixteen keys of both kinds sign and each verifies alone: the bounds of both sides fit.
func TestManyKeys(t *testing.T) {
	var all []webhook.Key
	for i := range 16 {
		if i%2 == 0 {
			all = append(all, webhook.NewSecret())
		} else {
			all = append(all, webhook.NewSigningKey())
		}
	}
	h := http.Header{}
	require.NoError(t, webhook.Sign(h, "m", at, []byte("x"), all...))
	for _, k := range all {
		if p := k.Public(); !p.IsZero() {
			k = p
		}
		_, err := webhook.Verify(h, []byte("x"), at, k)
		require.NoError(t, err)
	}
}

func TestParseKey(t *testing.T) {
	b64 := func(n int) string { return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{0xfb}, n)) }
	pair := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))
	other := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, 32))
	mixed := append(append([]byte{}, pair[:32]...), other[32:]...)
	for _, c := range []struct {
		name, text string
		good       bool
	}{
		{"secret of 23 bytes", "whsec_" + b64(23), false},
		{"secret of 24 bytes", "whsec_" + b64(24), true},
		{"secret of 64 bytes", "whsec_" + b64(64), true},
		{"secret of 65 bytes", "whsec_" + b64(65), false},
		{"seed", "whsk_" + b64(32), true},
		{"seed of 31 bytes", "whsk_" + b64(31), false},
		{"whole private key", "whsk_" + base64.StdEncoding.EncodeToString(pair), true},
		{"halves of two keys", "whsk_" + base64.StdEncoding.EncodeToString(mixed), false},
		{"public key", "whpk_" + base64.StdEncoding.EncodeToString(pair[32:]), true},
		{"public key of 31 bytes", "whpk_" + b64(31), false},
		{"forgotten public key", "whpk_" + base64.StdEncoding.EncodeToString(make([]byte, 32)), false},
		{"no prefix", b64(24), false},
		{"upper-case prefix", "WHSEC_" + b64(24), false},
		{"prefix alone", "whsec_", false},
		{"empty", "", false},
		{"URL alphabet", "whsec_" + strings.ReplaceAll(b64(24), "+", "-"), false},
		{"no padding", "whsec_" + strings.TrimRight(b64(25), "="), false},
		{"spare bits set", "whsec_" + strings.Replace(b64(25), "+w==", "+x==", 1), false},
		{"line end within", "whsec_" + b64(24)[:8] + "\n" + b64(24)[8:], false},
		{"space before", " whsec_" + b64(24), false},
		{"very long", "whsec_" + b64(1<<16), false},
	} {
		k, err := webhook.ParseKey(c.text)
		require.Equal(t, c.good, err == nil, "%s: %v", c.name, err)
		if !c.good {
			require.ErrorIs(t, err, webhook.ErrKey, c.name)
			require.True(t, k.IsZero(), c.name)
			require.NotContains(t, err.Error(), "+/v7", c.name)
			continue
		}
		again, err := webhook.ParseKey(k.Reveal())
		require.NoError(t, err, c.name)
		require.Equal(t, k.Reveal(), again.Reveal(), c.name)
	}
}

// For each point that ParseKey refuses there is a signature that anybody can write and crypto/ed25519 takes.
func TestLowOrderKeysAreForgeable(t *testing.T) {
	points := []string{
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	}
	forged := append([]byte{1}, make([]byte, 63)...) // R is the neutral element, s is 0
	for _, text := range points {
		for _, sign := range []byte{0, 0x80} {
			var p []byte
			_, err := fmt.Sscanf(text, "%x", &p)
			require.NoError(t, err)
			p[31] |= sign
			_, err = webhook.ParseKey("whpk_" + base64.StdEncoding.EncodeToString(p))
			require.ErrorIs(t, err, webhook.ErrKey, "%x", p)
			if sign != 0 && (p[0] == 1 || p[0] == 0xec || p[0] == 0xee) {
				continue // x is 0, which has no sign: some verifiers take it and some do not
			}
			took := false
			for i := 0; i < 256 && !took; i++ {
				took = ed25519.Verify(p, []byte{byte(i)}, forged)
			}
			require.True(t, took, "%x", p)
		}
	}
}

func TestPublic(t *testing.T) {
	private := webhook.NewSigningKey()
	h := http.Header{}
	require.NoError(t, webhook.Sign(h, "m", at, nil, private))
	_, err := webhook.Verify(h, nil, at, private.Public())
	require.NoError(t, err)
	require.Equal(t, private.Public().Reveal(), private.Public().Public().Reveal())
	require.True(t, webhook.NewSecret().Public().IsZero())
	require.True(t, webhook.Key{}.Public().IsZero())
	require.Empty(t, webhook.Key{}.Reveal())
	require.NotEqual(t, webhook.NewSecret().Reveal(), webhook.NewSecret().Reveal())
	require.NotEqual(t, webhook.NewSigningKey().Reveal(), webhook.NewSigningKey().Reveal())
}

// P6: types that hold secrets redact themselves.
func TestP6KeysRedactThemselves(t *testing.T) {
	type open struct{ K webhook.Key }
	type closed struct{ k webhook.Key }
	for _, text := range []string{published, "whsk_" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("seed"), 8))} {
		k := key(t, text)
		_, encoded, _ := strings.Cut(text, "_")
		raw, err := base64.StdEncoding.DecodeString(encoded)
		require.NoError(t, err)
		var out []string
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%b", "%o", "%c", "%U", "%e", "%t", "%T", "%p", "%10s", "% x"} {
			for _, v := range []any{k, &k, open{k}, &open{k}, closed{k}, &closed{k}, []webhook.Key{k}, map[string]closed{"a": {k}}} {
				out = append(out, fmt.Sprintf(verb, v))
			}
		}
		for _, v := range []any{k, &k, open{k}, closed{k}, []webhook.Key{k}} {
			j, err := json.Marshal(v)
			require.NoError(t, err)
			out = append(out, string(j))
			var buf bytes.Buffer
			slog.New(slog.NewTextHandler(&buf, nil)).Info("x", "key", v)
			slog.New(slog.NewJSONHandler(&buf, nil)).Info("x", "key", v)
			out = append(out, buf.String())
		}
		for _, s := range out {
			for _, secret := range []string{encoded, encoded[:12], string(raw[:8]), fmt.Sprintf("%x", raw[:8]), fmt.Sprintf("%X", raw[:8]), fmt.Sprintf("% x", raw[:8]),
				strings.Trim(fmt.Sprint(raw[:8]), "[]"), strings.Trim(fmt.Sprintf("%#v", raw[:8])[7:], "{}")} {
				require.NotContains(t, s, secret)
			}
		}
		require.Equal(t, text[:strings.Index(text, "_")+1]+"[redacted]", k.String())
	}
	public := webhook.NewSigningKey().Public()
	require.Equal(t, public.Reveal(), public.String())
	require.Empty(t, webhook.Key{}.String())
}

func TestKeysInConfiguration(t *testing.T) {
	var config struct{ Secret, None webhook.Key }
	require.NoError(t, json.Unmarshal([]byte(`{"Secret":"`+published+`","None":""}`), &config))
	require.Equal(t, published, config.Secret.Reveal())
	require.True(t, config.None.IsZero())
	out, err := json.Marshal(config)
	require.NoError(t, err)
	require.Equal(t, `{"Secret":"whsec_[redacted]","None":""}`, string(out))
	require.ErrorIs(t, json.Unmarshal(out, &config), webhook.ErrKey, "what stands for a secret is not taken for one")
}

func FuzzParseKey(f *testing.F) {
	for _, s := range []string{published, "whsk_", "whpk_AAAA", "whsec_====", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		k, err := webhook.ParseKey(text)
		if err != nil {
			require.True(t, k.IsZero())
			return
		}
		again, err := webhook.ParseKey(k.Reveal())
		require.NoError(t, err)
		require.Equal(t, k.Reveal(), again.Reveal())
		if !strings.HasPrefix(text, "whsk_") { // a private key has two texts
			require.Equal(t, text, k.Reveal())
		}
	})
}

// Nothing but what Sign wrote verifies.
func FuzzVerify(f *testing.F) {
	k := key(f, published)
	public := key(f, "whsk_"+base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{3}, 32))).Public()
	const good = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
	const body = `{"test": 2432232314}`
	f.Add(publishedID, "1614265330", good, []byte(body))
	f.Add("a.b", "-1", "v1a,"+strings.Repeat("A", 88), []byte{})
	f.Add("", "99999999999999999999", "v1 v1, ,,v1,", []byte(body))
	f.Fuzz(func(t *testing.T, id, timestamp, signature string, b []byte) {
		h := http.Header{webhook.HeaderID: {id}, webhook.HeaderTimestamp: {timestamp}, webhook.HeaderSignature: {signature}}
		_, err := webhook.Verify(h, b, at, k, public)
		if err == nil {
			require.Equal(t, []any{publishedID, "1614265330", body}, []any{id, timestamp, string(b)})
			require.Contains(t, signature, good)
			return
		}
		require.ErrorIs(t, err, webhook.ErrRefused)
	})
}

func BenchmarkVerify(b *testing.B) {
	body := bytes.Repeat([]byte("x"), 1024)
	for name, k := range map[string]webhook.Key{"v1": webhook.NewSecret(), "v1a": webhook.NewSigningKey()} {
		h := http.Header{}
		require.NoError(b, webhook.Sign(h, "m", at, body, k))
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := webhook.Verify(h, body, at, k); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
