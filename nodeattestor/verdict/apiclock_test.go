package verdict_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/keelson-project/keelson/nodeattestor/verdict"
)

func TestThreat25_TheAPIsClockIsHeard(t *testing.T) {
	const ahead = 5 * time.Hour
	date := true
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", time.Now().Add(ahead).UTC().Format(http.TimeFormat))
		if !date {
			w.Header().Set("Date", "yesterday")
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer api.Close()
	s, err := verdict.NewStore(&rest.Config{Host: api.URL})
	if err != nil {
		t.Fatal(err)
	}
	ask := func() {
		if _, err := s.Binding(t.Context(), "fra-1"); err == nil {
			t.Fatal("an API that is unavailable gave a binding")
		}
	}
	if now, known := s.Now(); known {
		t.Errorf("the API's clock says %s before it was asked", now)
	}
	date = false
	ask()
	if now, known := s.Now(); known {
		t.Errorf("the API's clock says %s by a Date that is none", now)
	}
	date = true
	ask()
	now, known := s.Now()
	if off := now.Sub(time.Now().Add(ahead)); !known || off.Abs() > time.Minute {
		t.Errorf("the API's clock says %s (known: %t), %s off", now, known, off)
	}
}
