// The health check of MongoDB in docker-compose.yml. Makes a new server a replica set of one, which is what transactions
// and change streams need; an older server without one becomes one with its data. It is healthy once it can be written to.
if (!db.hello().setName) {
  db.getSiblingDB("admin").auth("pipeline", process.env.MONGO_INITDB_ROOT_PASSWORD);
  rs.initiate({_id: "pipeline", members: [{_id: 0, host: "mongo:27017"}]});
}
quit(db.hello().isWritablePrimary ? 0 : 1);
