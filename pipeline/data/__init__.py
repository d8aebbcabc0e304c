"""Images as a stream: data sets, where they come from, scenarios, which image comes when. Imports records."""
