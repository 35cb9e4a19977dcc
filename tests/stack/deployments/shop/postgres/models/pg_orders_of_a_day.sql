{{ config(materialized="incremental", unique_key="id") }}
select * from {{ source("till", "pg_raw_orders") }}
where ordered_on = '{{ var("day") }}'
