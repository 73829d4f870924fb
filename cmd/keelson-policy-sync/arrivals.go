package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"k8s.io/client-go/discovery"

	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/syncconfig"
)

// arrivals ends the program when an optional data plane is installed after the start, so that its supervisor starts it anew
// with that one in use. One that goes away does not end it: a program that ends cannot close anything, and its failing
// operations say so.
type arrivals struct {
	client discovery.DiscoveryInterface
	config syncconfig.Config
	log    *slog.Logger
}

// lookAgain is how often to look; installing a data plane takes minutes.
const lookAgain = time.Minute

// Start looks until ctx ends.
func (a arrivals) Start(ctx context.Context) error {
	ticker := time.NewTicker(lookAgain)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := a.look(); err != nil {
			return err
		}
	}
}

// NeedLeaderElection is false: every replica has to start anew.
func (a arrivals) NeedLeaderElection() bool { return false }

func (a arrivals) look() error {
	found, err := kube.Discover(a.client)
	if err != nil {
		a.log.Warn("cannot see which data planes are served", "err", err)
		return nil
	}
	if found.Calico && !a.config.Snapshot.Calico && a.config.Calico != syncconfig.Off ||
		found.Istio && !a.config.Snapshot.Istio && a.config.Istio != syncconfig.Off {
		return errors.New("a data plane was installed: start again to use it")
	}
	if a.config.Snapshot.Calico && found.Calico && found.CalicoDefinitions != a.config.Snapshot.CalicoDefinitions {
		return errors.New("the API server of Calico came or went: start again")
	}
	for _, kind := range a.config.Snapshot.Absent {
		if !slices.Contains(found.Absent, kind) && a.config.Snapshot.Istio {
			return fmt.Errorf("%s is served now: start again to read it", kind)
		}
	}
	return nil
}
